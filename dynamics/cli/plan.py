"""`dynamics plan`: whether runs fit on machines, how long they take, what they cost."""

import argparse
import json
import os
import sys
from typing import Any

from dynamics.cli.options import function_of, load_run, load_study
from dynamics.cli.stopping import orderly_on_sigterm
from dynamics.errors import UserError

EXIT_DOES_NOT_FIT = 2
GIB = 2**30


def plan(options: argparse.Namespace) -> int:
    """Print the plan; exit code 2 when a cell fits on none of the machines."""
    from dynamics.study.compiled import ENVIRONMENT, Compiler

    os.environ.update(ENVIRONMENT)  # before jax starts: nothing is computed here, so no accelerator is looked for
    from dynamics.study.plan import plan as make
    from dynamics.study.plan_jobs import Assumptions, jobs_of
    from dynamics.study.prepare import Workspace, cache_folder
    from dynamics.study.topologies import parse_topology

    machines = [parse_topology(text, slices=_slices(text, options.slices)) for text in options.topology]
    prices = _prices(options.price, [machine.chip.name for machine in machines])
    if options.tokens_per_record < 1:
        raise UserError(f"--tokens-per-record {options.tokens_per_record}; give a whole number, 1 or more")
    value = load_study(options) if function_of(options.config) == "study" else load_run(options)
    workspace = Workspace(cache_folder())
    compiler = None if options.estimate else Compiler(workspace.folder, on_progress=_Progress())
    if compiler is not None and any(machine.chip.is_tpu for machine in machines):
        compiler.require()
    jobs = jobs_of(value, workspace, Assumptions(tokens_per_record=options.tokens_per_record, vocab=options.vocab))
    with orderly_on_sigterm():  # so that a compilation under way ends with the command
        found = make(jobs, machines, compiler, prices=prices, searching=options.search)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print(found)
    nowhere = found["cells_that_fit_nowhere"]
    if nowhere:
        print(f"dynamics: {nowhere} of {found['cells']} cells fit on none of the machines given", file=sys.stderr)
    return EXIT_DOES_NOT_FIT if nowhere else 0


def _slices(text: str, slices: int) -> int:
    """Slices are of TPUs; beside GPUs in one table they mean nothing and are left out there."""
    from dynamics.study.topologies import parse_topology

    return slices if parse_topology(text).chip.is_tpu else 1


def _prices(given: list[str], chips: list[str]) -> dict[str, float]:
    """{chip: dollars an hour} of '4.2' (every chip) or 'v5p=4.2'."""
    prices: dict[str, float] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = -1.0
        if price < 0:
            raise UserError(f"--price {text!r}; give dollars a chip-hour, such as 4.2, or v5p=4.2 for one kind of chip")
        if equals and name not in chips:
            raise UserError(f"--price {text!r} is of a chip that no --topology names; they name {', '.join(chips)}")
        prices |= {name: price} if equals else dict.fromkeys(chips, price)
    return prices


class _Progress:
    """What is being compiled, on standard error; the same line again where that is a terminal."""

    def __call__(self, line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"[bold]{found['name']}[/]: {found['cells']} cells", highlight=False)
    for machine in found["machines"]:
        _print_machine(console, machine)
    console.print()
    for note in found["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "note: the step time is the longest of its three bounds, with products at "
        f"{found['matmul_efficiency']:.0%} of peak and bandwidths in full",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _print_machine(console: Any, machine: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"\n[bold]{machine['topology']}[/], {machine['chips']} chips", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("size", "mesh", "remat", "bound", "by") else "right")
    for row in machine["programs"]:
        table.add_row(*_program_columns(row))
    console.print(table)
    for row in machine["programs"]:
        if "roofline" in row:
            _print_collectives(console, row)
        if not row["fits"]:
            said = f"  does not fit: {row['refusal']}; {_nearest(row['nearest'])}"
            console.print(said, style="red", highlight=False, soft_wrap=True)
        if "search" in row:
            console.print(f"  {row['size']}: {_search(row['search'])}", highlight=False)
    _print_cells(console, machine)


_COLUMNS = ("size", "mesh", "batch", "remat", "GiB of GiB", "state+temp", "max rows", "step s", "bound", "MFU",
            "TFLOP", "GB moved", "by")  # fmt: skip


def _program_columns(row: dict[str, Any]) -> tuple[str, ...]:
    if "memory" not in row:
        own = (row["size"], row["mesh"], f"{row['rows']}/{row['micro']} x {row['length']}", row["remat"])
        return *own, *["-"] * (len(_COLUMNS) - 5), row["how"]
    memory, line = row["memory"], row["roofline"]
    split = "-"
    if memory["arguments"] is not None:
        split = f"{memory['arguments'] / GIB:.1f}+{memory['temporaries'] / GIB:.1f}"
    micro = f"/{row['micro']}" if row["micro"] > 1 else ""
    moved = sum(one["wire_bytes"] for one in row["collectives"])
    return (
        row["size"], row["mesh"], f"{row['rows']}{micro} x {row['length']}", row["remat"],
        f"{memory['used'] / GIB:.1f} of {memory['had'] / GIB:.1f}", split,
        "-" if row["largest_rows"] is None else f"{row['largest_rows']:,}",
        f"{line['step']:.3g}" if row["fits"] else "-", line["bound"] if row["fits"] else "[red]does not fit[/]",
        f"{row['mfu']:.0%}" if row["fits"] else "-", f"{row['flops']['executed'] / 1e12:,.0f}",
        f"{moved / 1e9:,.1f}", row["how"],
    )  # fmt: skip


def _print_collectives(console: Any, row: dict[str, Any]) -> None:
    parts = []
    for one in row["collectives"]:
        times = "" if one["times"] is None else f" in {one['times']:,.0f}"
        network = f" ({_size(one['network_bytes'])} over the network)" if one["network_bytes"] else ""
        parts.append(f"{one['kind']} {_size(one['wire_bytes'])}{times}{network}")
    line = row["roofline"]
    bounds = ", ".join(f"{name} {line[name]:.3g} s" for name in ("compute", "memory", "interconnect"))
    moved = f"; to each chip: {', '.join(parts)}" if parts else ""
    console.print(f"  {row['size']}: {bounds}{moved}", highlight=False, soft_wrap=True)


def _print_cells(console: Any, machine: dict[str, Any]) -> None:
    from rich.table import Table

    priced = machine["price"] is not None
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ["size", "volume", "seed", "steps", "tokens", "MFU", "hours", "chip-hours"]
    columns += ["dollars"] if priced else []
    told = ("source", "abilities", "objective", "after")
    several = [name for name in told if len({cell[name] for cell in machine["cells"]}) > 1]
    for column in [*several, *columns]:
        table.add_column(column, justify="left" if column in ("size", *several) else "right")
    for cell in machine["cells"]:
        values = [cell["size"], str(cell["volume"]), str(cell["seed"]), f"{cell['steps']:,}", f"{cell['tokens']:,}"]
        if cell["fits"]:
            values += ["-" if cell["mfu"] is None else f"{cell['mfu']:.0%}", _hours(cell["hours"])]
            values += [_hours(cell["chip_hours"]), *([f"{cell['cost']:,.2f}"] if priced else [])]
        else:
            values += ["does not fit", "-", "-", *(["-"] if priced else [])]
        table.add_row(*(cell[name] or "-" for name in several), *values)
    total = [f"{machine['cells_that_fit']} cells", "", "", f"{machine['steps']:,}", "", "", _hours(machine["hours"])]
    total += [_hours(machine["chip_hours"]), *([f"{machine['cost']:,.2f}"] if priced else [])]
    table.add_section()
    table.add_row(*[""] * len(several), *total, style="bold")
    console.print(table)
    passes = [cell["reference"] for cell in machine["cells"] if cell["reference"]]
    if passes:
        pairs, tokens = sum(one["pairs"] for one in passes), sum(one["tokens"] for one in passes)
        console.print(
            f"  reference, once before training and not in the hours above: {_hours(machine['reference_hours'])} hours "
            f"for {pairs:,} pairs of {tokens:,} tokens in {len(passes)} runs; runs of one start and one data set share "
            "it", highlight=False, soft_wrap=True,
        )  # fmt: skip


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"


def _size(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def _nearest(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no setting of remat, micro-batches and mesh fits on any machine of this chip, by the estimate"
    return (
        f"nearest that fits, by the estimate: {found['topology']}, mesh {found['mesh']}, {found['micro']} "
        f"micro-batch{'es' if found['micro'] > 1 else ''}, remat {found['remat']} "
        f"({found['used'] / GIB:.1f} of {found['had'] / GIB:.1f} GiB, {found['step']:.3g} s a step)"
    )


def _search(found: dict[str, Any]) -> str:
    if "remat" not in found:
        return f"search: of {found['candidates']} settings that fit by the estimate none fits ({found['tried']} tried)"
    faster = "" if found["faster"] is None else f", {found['faster']:.2f} x the speed of the config's own"
    return (
        f"search: best of {found['candidates']} that fit by the estimate: remat {found['remat']}, "
        f"{found['micro']} micro-batches, mesh {found['mesh']}: {found['used'] / GIB:.1f} of "
        f"{found['had'] / GIB:.1f} GiB, {found['step']:.3g} s a step ({found['bound']}){faster}"
    )
