"""What each trick of the training step is worth: the step with one of them off, timed in turns with the whole step.

    python benchmarks/ablations.py --rounds 4 --json benchmarks/results/ablations.json \\
        --plot benchmarks/results/ablations.png
    python benchmarks/ablations.py --table benchmarks/results/ablations.json      the table of docs/performance.md

Same model, documents and rows as benchmarks/peers. All programs are compiled in one process and handed one set of
parameters and moments from step to step, A, B, C, A, B, C; what concerns the process itself (the allocator, huge pages)
is timed in processes that take turns. Counts come from the programs: operations and bytes by XLA's cost analysis (which
counts the body of a scan once, so the scanned step shows too few), lines of StableHLO, temporary memory.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dynamics.allocator import keep_freed_memory
from dynamics.data.batches import DeviceBatch, HostBatch, compact
from dynamics.losses.objective import MicroBatch, Objective, Sums, trained_hidden
from dynamics.losses.sft import SFT
from dynamics.model import llama
from dynamics.train.optimizer import AdamW, Optimizer
from dynamics.train.step import init_state, update

# The peers' programs import each other by their bare names, because each is started as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import ours
import run
from workload import LENGTH, ROWS, Workload

WHOLE = "all tricks"


class PlainSFT(Objective):
    """The same loss by log_softmax over all trained rows at once, differentiated by JAX."""

    def __call__(self, model: Any, micro_batch: MicroBatch) -> tuple[Float[Array, ""], Sums]:
        hidden = trained_hidden(model, micro_batch)
        logprobs = jax.nn.log_softmax(jnp.einsum("gnd,dv->gnv", hidden, model.head))
        gold = jnp.take_along_axis(logprobs, micro_batch["trained_targets"][..., None], axis=-1)[..., 0]
        weights = micro_batch["trained_weights"]
        loss = -jnp.sum(weights * gold)
        return loss, {"loss": (jax.lax.stop_gradient(loss), weights.sum())}


class ChainedAdamW(AdamW):
    """The same numbers by optax's own chain of clipping, moments and decay."""

    def transform(self) -> optax.GradientTransformation:
        return Optimizer.transform(self)


def product_of_three_dimensions(x: Array, weight: Array) -> Array:
    """What `llama.dense` computes, without flattening the rows."""
    return jnp.tensordot(x, weight.astype(x.dtype), axes=1)


def all_positions(rows: HostBatch) -> DeviceBatch:
    """A device batch whose head is applied everywhere; untrained positions have weight 0."""
    everywhere = rows | {"weights": np.ones_like(rows["weights"])}
    batch = compact(everywhere, groups=1, cap=ROWS * LENGTH)
    return batch | {"trained_weights": rows["weights"].reshape(batch["trained_weights"].shape)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """The step with one trick off. `what` says how it then computes."""

    name: str
    what: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of LlamaConfig that differ
    objective: Objective = dataclasses.field(default_factory=SFT)
    chained: bool = False
    donate: bool = True
    dense: Callable[[Array, Array], Array] | None = None
    padded: bool = False
    everywhere: bool = False


VARIANTS = (
    Variant(name=WHOLE),
    Variant(name="packing", what="one document a row of 512", padded=True),
    Variant(name="head at trained rows", what="head at every position", everywhere=True),
    Variant(name="gradients in the forward pass", what="log_softmax, differentiated", objective=PlainSFT()),
    Variant(name="attention in blocks (reference)", what="all scores at once", config={"attention": "reference"}),
    Variant(name="attention in blocks (fused)", what="jax.nn.dot_product_attention", config={"attention": "fused"}),
    Variant(name="flat products", what="products of three dimensions", dense=product_of_three_dimensions),
    Variant(name="clip and AdamW in one pass", what="optax's chain", chained=True),
    Variant(name="unrolled layers", what="scan over layers", config={"scan_layers": True}),
    Variant(name="no remat (dots)", what="remat: weight products kept", config={"remat": "dots"}),
    Variant(name="no remat (full)", what="remat: nothing kept", config={"remat": "full"}),
    Variant(name="donation", what="state copied", donate=False),
)


class Program:
    """A variant compiled for its batches, which are made beforehand."""

    def __init__(self, variant: Variant, workload: Workload, *, steps: int) -> None:
        self.variant = variant
        optimizer = (ChainedAdamW if variant.chained else AdamW)(**ours.optimizer_settings())
        config = dataclasses.replace(ours.config(), **variant.config)
        step = functools.partial(update, variant.objective, optimizer)
        state = jax.eval_shape(
            lambda: init_state(llama.init(config, jax.random.key(0)), optimizer, total_steps=1000)
        )  # fmt: skip
        self.structure = jax.tree.structure(state)
        self.batches, self.tokens = [], []
        for number in range(steps):
            rows = workload.padded_rows(number) if variant.padded else workload.rows(number)
            cap = 1024 if variant.padded else ours.trained_cap(workload)
            batch = all_positions(rows) if variant.everywhere else compact(rows, groups=1, cap=cap)
            self.batches.append(batch)
            self.tokens.append(int((rows["segments"] > 0).sum()))
        dense = llama.dense if variant.dense is None else variant.dense
        begun = time.perf_counter()
        with mock.patch.object(llama, "dense", dense):
            lowered = jax.jit(step, donate_argnums=0 if variant.donate else ()).lower(state, self.batches[0])
        self.stablehlo_lines = len(lowered.as_text().splitlines())
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - begun

    def counts(self) -> dict[str, float]:
        cost: Any = self.compiled.cost_analysis()
        memory: Any = self.compiled.memory_analysis()
        return {
            "flops": cost["flops"],
            "bytes": cost["bytes accessed"],
            "temporary_bytes": memory.temp_size_in_bytes,
            "stablehlo_lines": self.stablehlo_lines,
            "compile_s": self.compile_s,
        }

    def step(self, leaves: list[Array], number: int) -> tuple[list[Array], dict[str, float]]:
        """One update of the state that all programs share."""
        state = jax.tree.unflatten(self.structure, leaves)
        wall, cpu = time.perf_counter(), time.process_time()
        new_state, metrics = jax.block_until_ready(self.compiled(state, self.batches[number]))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        total, weight = (float(value) for value in metrics["loss"])
        sample = {"wall_s": wall, "cpu_s": cpu, "tokens": self.tokens[number], "loss": total / weight}
        return jax.tree.leaves(new_state), sample


def first_leaves() -> list[Array]:
    """The arrays of a state before its first step. Every program takes and gives them in this order."""
    optimizer = AdamW(**ours.optimizer_settings())
    return jax.tree.leaves(init_state(llama.init(ours.config(), jax.random.key(0)), optimizer, total_steps=1000))


def in_process(workload: Workload, *, rounds: int, names: list[str] | None) -> dict[str, Any]:
    """Every variant of the program, in turns; the first turn is not counted."""
    chosen = [variant for variant in VARIANTS if names is None or variant.name in (WHOLE, *names)]
    programs = []
    for variant in chosen:
        programs.append(Program(variant, workload, steps=rounds + 1))
        print(f"{variant.name}: compiled in {programs[-1].compile_s:.0f} s", file=sys.stderr)
    leaves = first_leaves()
    samples: list[list[dict[str, float]]] = [[] for _ in programs]
    for number in range(rounds + 1):
        for program, mine in zip(programs, samples, strict=True):
            leaves, sample = program.step(leaves, number)
            mine.append(sample)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return {
        program.variant.name: {"without": program.variant.what} | program.counts() | summary(mine[1:])
        for program, mine in zip(programs, samples, strict=True)
    }


# What a process is started with; the first is how `dynamics` starts its workers.
PROCESSES = {
    "freed memory kept": ((), {}),
    "freed memory given back": (("--no-keep-memory",), {}),
    "freed memory kept, huge pages": ((), {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
}


def in_processes(workload: Path, weights: Path, *, rounds: int) -> dict[str, Any]:
    """The allocator and huge pages: processes that take turns."""
    processes = [
        run.Process(run.OURS, workload, weights, extra=extra, environment=environment)
        for extra, environment in PROCESSES.values()
    ]
    for process in processes:
        process.first_step()
    samples: list[list[dict[str, float]]] = [[] for _ in processes]
    for _ in range(rounds):
        for process, mine in zip(processes, samples, strict=True):
            mine.append(process.step())
    for process in processes:
        process.stop()
    return {name: summary(mine) for name, mine in zip(PROCESSES, samples, strict=True)}


def summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and the samples behind them."""
    per_1000 = [1000 * sample["cpu_s"] / sample["tokens"] for sample in samples]
    return {
        "cpu_s_per_1000_tokens": statistics.median(per_1000),
        "cpu_s_per_1000_tokens_range": [min(per_1000), max(per_1000)],
        "cpu_s": statistics.median(sample["cpu_s"] for sample in samples),
        "wall_s": statistics.median(sample["wall_s"] for sample in samples),
        "samples": samples,
    }


def add_ratios(results: dict[str, Any], base: str) -> None:
    """Cost of each over that of `base`, as the median of the rounds' ratios."""
    for result in results.values():
        pairs = zip(result["samples"], results[base]["samples"], strict=True)
        each = [(a["cpu_s"] / a["tokens"]) / (b["cpu_s"] / b["tokens"]) for a, b in pairs]
        result["ratio"], result["ratio_range"] = statistics.median(each), [min(each), max(each)]


def table(report: dict[str, Any]) -> str:
    """Both parts as Markdown."""
    lines = [
        "| trick that is off | computed instead | CPU-s per 1,000 tokens | times the whole (range) | wall, s "
        "| GFLOP | GB moved | temporaries, GB | StableHLO lines |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in report["step"].items():
        low, high = r["ratio_range"]
        lines.append(
            f"| {name} | {r['without']} | {r['cpu_s_per_1000_tokens']:.2f} | {r['ratio']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {r['wall_s']:.1f} | {r['flops'] / 1e9:.0f} | {r['bytes'] / 1e9:.0f} "
            f"| {r['temporary_bytes'] / 1e9:.1f} | {r['stablehlo_lines']} |"
        )
    lines += ["", "| process | CPU-s per 1,000 tokens | times the first (range) | wall, s |", "|---|---|---|---|"]
    for name, r in report["process"].items():
        low, high = r["ratio_range"]
        lines.append(
            f"| {name} | {r['cpu_s_per_1000_tokens']:.2f} | {r['ratio']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {r['wall_s']:.1f} |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """How many times the whole step's cost each variant has, with the range of the rounds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    results = {name: r for name, r in {**report["step"], **report["process"]}.items() if r["ratio"] != 1.0}
    ordered = sorted(results.items(), key=lambda item: item[1]["ratio"])
    figure, axis = pyplot.subplots(figsize=(9, 0.36 * len(ordered) + 1.2), layout="constrained")
    for place, (_, result) in enumerate(ordered):
        middle, (low, high) = result["ratio"], result["ratio_range"]
        axis.barh(place, middle - 1, left=1, color="tab:blue" if low > 1 else "lightgray")
        axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="black", capsize=3)
        axis.annotate(f" {middle:.2f}", (max(high, 1), place), xytext=(4, 0), textcoords="offset points", va="center")
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(ordered)), [_label(name) if name in report["step"] else name for name, _ in ordered])
    axis.set(xlabel="CPU-seconds per token, times the whole step's (gray: not dearer in some round)")
    axis.margins(x=0.12)
    figure.savefig(path, dpi=120)


def _label(trick: str) -> str:
    """What is timed: the step without the trick; "no remat" off is remat."""
    return f"with {trick.removeprefix('no ')}" if trick.startswith("no ") else f"without {trick}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each variant, after one that is not")
    parser.add_argument("--only", nargs="+", choices=[v.name for v in VARIANTS], help="these variants and the whole")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="write a figure here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of an earlier result, and leave")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    jax.config.update("jax_platforms", "cpu")
    workload, weights = run.prepare([])
    processes = in_processes(workload, weights, rounds=arguments.rounds)
    keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", str(run.BUILD / "programs"))
    step = in_process(Workload.load(workload), rounds=arguments.rounds, names=arguments.only)
    add_ratios(step, WHOLE)
    add_ratios(processes, next(iter(PROCESSES)))
    report = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
        "jax": jax.__version__,
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "step": step,
        "process": processes,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot:
        plot(report, arguments.plot)
    print(table(report))


if __name__ == "__main__":
    main()
