"""`dynamics data order`."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamics.cli.options import function_of, load_run, load_study

if TYPE_CHECKING:
    from dynamics.study.grid import Study

_SHOWN_EPOCHS = 6


def order(options: argparse.Namespace) -> int:
    """The orders of a study (or of the one run of a config) as a table, before anything is trained."""
    from dynamics.study.order_table import order_table
    from dynamics.study.prepare import Workspace, cache_folder

    found = order_table(_study(options), Workspace(cache_folder()))
    if options.out is not None:
        from dynamics.study.order_figures import save_order_figure

        save_order_figure(found, Path(options.out))
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for one in found["orders"]:
        _print_order(one)
    if options.out is not None:
        print(f"figure: {options.out}")
    return 0


def _study(options: argparse.Namespace) -> "Study":
    """The config's study; a config of one run is a study of its one order."""
    if function_of(options.config) == "study":
        return load_study(options)
    from dynamics.study.grid import Study

    return Study(name="run", run=load_run(options), base_cells=False)


def point_to_orders(study: "Study", path: str) -> None:
    """A line on standard error where a study orders records by a difficulty."""
    from dynamics.study.order_table import ordered

    names = ordered(study)
    if names:
        print(
            f"{len(names)} order{'s' if len(names) > 1 else ''} by difficulty ({'; '.join(names)}); "
            f"what comes when: dynamics data order {path}",
            file=sys.stderr,
        )


def _print_order(one: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    shown = "" if one["ordered_by_it"] else " (which it does not look at)"
    console.print(f"\n[bold]{one['order']}[/]", highlight=False)
    console.print(
        f"{one['records']:,} records, {one['places_per_epoch']:,} places an epoch, {one['epochs']:g} epochs in "
        f"{one['steps']:,} steps; never read: {one['never_read']:,}; difficulty by {one['difficulty']}{shown}; "
        f"{one['size']}, volume {one['volume']}, seed {one['seed']}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    tenths = one["tenths"]
    read, size = one["first_epoch_read"], one["places_per_epoch"]
    title = "first epoch by tenth"
    if read < size:
        title += f"; the budget ends after {read:,} of its {size:,} places (-: not read)"
    console.print(title, style="italic", highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for tenth in tenths:
        table.add_column(str(tenth["tenth"]), justify="right")
    table.add_row("mean difficulty", *(_number(tenth["difficulty"]) for tenth in tenths))
    table.add_row("repeats", *(str(tenth["repeats"] or "-") for tenth in tenths))
    for ability in tenths[0]["abilities"]:
        table.add_row(ability, *(_share(tenth["abilities"][ability]) for tenth in tenths), style="dim")
    console.print(table)
    if _epochs_differ(one):
        _print_epochs(console, one)


def _epochs_differ(one: Mapping[str, Any]) -> bool:
    """Whether later epochs are of another kind than the first: other counts, or another course of difficulty."""
    whole = [epoch for epoch in one["by_epoch"] if epoch["places"] == one["places_per_epoch"]]
    if any((epoch["repeats"], epoch["not_read"]) != (whole[0]["repeats"], whole[0]["not_read"]) for epoch in whole[1:]):
        return True
    means = [[value for value in epoch["difficulty"] if value is not None] for epoch in whole]
    spread = max((max(own) - min(own) for own in means), default=0.0)
    return one["ordered_by_it"] and any(
        abs(value - first) > 0.25 * spread for own in means[1:] for value, first in zip(own, means[0], strict=True)
    )


def _print_epochs(console: Any, one: Mapping[str, Any]) -> None:
    from rich.table import Table

    title = "mean difficulty by tenth, epoch by epoch"
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in ("epoch", *(str(tenth["tenth"]) for tenth in one["tenths"]), "repeats", "not read"):
        table.add_column(column, justify="right")
    for epoch in one["by_epoch"][:_SHOWN_EPOCHS]:
        means = [_number(value) for value in epoch["difficulty"]]
        table.add_row(str(epoch["epoch"]), *means, f"{epoch['repeats']:,}", f"{epoch['not_read']:,}")
    console.print(table)
    more = len(one["by_epoch"]) - _SHOWN_EPOCHS + one["epochs_not_listed"]
    if more > 0:
        console.print(f"and {more} more epochs (--json tells them)", highlight=False)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
