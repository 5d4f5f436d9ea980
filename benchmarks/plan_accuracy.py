"""The planner's estimate against the compiler: memory, products and traffic of one step on each of these machines.

    python benchmarks/plan_accuracy.py --json benchmarks/results/plan_accuracy.json \
        --plot benchmarks/results/plan_accuracy.png

Needs libtpu and no TPU. What the cache folder holds is not compiled again; everything anew takes about 25 minutes on
two idle cores, most of it for 7b, 13b and 33b (--small leaves them out).
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from dynamics.study.compiled import ENVIRONMENT, Compiled, Compiler, compiler_versions

os.environ.update(ENVIRONMENT)  # before jax starts

from dynamics.losses.sft import SFT
from dynamics.model.llama import SIZES, LlamaConfig
from dynamics.model.sharding import MeshShape
from dynamics.study import estimate
from dynamics.study.prepare import cache_folder
from dynamics.study.program import Program
from dynamics.study.run import Batch
from dynamics.train.optimizer import DOIT

GIB = 2**30
VOCABULARY = 49_984  # of configs/doit/curated.py


def shape(d_model: int, layers: int, remat: str) -> LlamaConfig:
    heads = d_model // 128
    return LlamaConfig(
        name=f"d{d_model}", vocab_size=4096, d_model=d_model, num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=128, d_ff=d_model * 11 // 4, compute_dtype="bfloat16", remat=remat, scan_layers=True,
    )  # fmt: skip


def program(model: LlamaConfig, topology: str, *, rows: int, length: int, micro: int = 1, **mesh: int) -> Program:
    return Program(
        shape=model, batch=Batch(rows=rows, length=length, micro=micro), headed=rows * length, objective=SFT(),
        optimizer=DOIT, mesh=MeshShape(**(mesh or {"fsdp": -1})), adapter=None, topology=topology, slices=1,
    )  # fmt: skip


SMALL = {
    "8 layers of 1024, dots": program(shape(1024, 8, "dots"), "v5e:2x4", rows=16, length=1024),
    "the same, nothing kept": program(shape(1024, 8, "full"), "v5e:2x4", rows=16, length=1024),
    "the same, four times the rows": program(shape(1024, 8, "dots"), "v5e:2x4", rows=64, length=1024),
    "four times the rows in 4 parts": program(shape(1024, 8, "dots"), "v5e:2x4", rows=64, length=1024, micro=4),
}
DOIT_SIZES = {
    f"{size} on {topology}": program(
        dataclasses.replace(SIZES[size], vocab_size=VOCABULARY), topology, rows=64, length=2048
    )
    for topology in ("v5p:4x4x4", "v5e:2x4")
    for size in ("7b", "13b", "33b")
} | {
    "7b on v5e:16x16, tensor=4": program(
        dataclasses.replace(SIZES["7b"], vocab_size=VOCABULARY), "v5e:16x16", rows=64, length=2048, fsdp=-1, tensor=4
    )
}


def compared(name: str, program: Program, compiled: Compiled) -> dict[str, Any]:
    """Both numbers of a program; of one that the compiler refuses there is its need alone."""
    needs = estimate.memory(program)
    work = estimate.Work(tokens=1.0, trained=1.0, pairs=1.0)  # decides only what is useful, which is not compared
    row = {
        "name": name,
        "fits": compiled.fits,
        "had_gib": compiled.had / GIB,
        "memory_gib": {"compiler": compiled.needed / GIB, "estimate": needs.total / GIB},
        "memory_ratio": needs.total / compiled.needed,
        "parts_gib": {name: value / GIB for name, value in dataclasses.asdict(needs).items()},
        "compile_seconds": compiled.seconds,
    }
    if compiled.counts is None:
        return row
    assert compiled.arguments is not None
    products = estimate.flops(program, work).products / program.num_chips
    wire = sum(one.wire_bytes for one in compiled.counts.traffic)
    moved = sum(wire for wire, _ in estimate.traffic(program).values())
    return row | {
        "arguments_ratio": needs.arguments / compiled.arguments,
        "product_flops": {"compiler": compiled.counts.matmul_flops, "estimate": products},
        "product_ratio": products / compiled.counts.matmul_flops,
        "wire_gb": {"compiler": wire / 1e9, "estimate": moved / 1e9},
        "wire_ratio": moved / wire,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.42 * len(rows) + 1.4), layout="constrained")
    places = range(len(rows))
    errors = [100 * (row["memory_ratio"] - 1) for row in rows]
    axes.axvspan(-10, 10, color="0.93", zorder=0, label="within 10 %")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.scatter(errors, places, color=["tab:blue" if row["fits"] else "tab:red" for row in rows], zorder=2)
    labels = [f"{row['name']}  ({row['memory_gib']['compiler']:.1f} GiB)" for row in rows]
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlim(-15, 15)
    axes.set_xlabel("estimated memory against the compiler's, % (red: refused)")
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--small", action="store_true", help="leave out 7b, 13b and 33b")
    options = parser.parse_args()
    compiler = Compiler(cache_folder(), on_progress=lambda line: print(line, file=sys.stderr))
    rows = []
    for name, one in (SMALL if options.small else DOIT_SIZES | SMALL).items():
        rows.append(compared(name, one, compiler(one, name)))
        memory = rows[-1]["memory_gib"]
        print(
            f"{name:32} compiler {memory['compiler']:7.2f} GiB, estimate {memory['estimate']:7.2f} "
            f"({rows[-1]['memory_ratio']:.3f}), products {rows[-1].get('product_ratio', float('nan')):.4f}, "
            f"traffic {rows[-1].get('wire_ratio', float('nan')):.2f}"
        )
    report = {"versions": compiler_versions(), "efficiency_assumed": estimate.MATMUL_EFFICIENCY, "programs": rows}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
