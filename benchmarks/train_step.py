"""Time of one SFT update at the reference workload, by the same step, optimizer and input that a study uses.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/train_step.py --steps 8 --json result.json --plot result.svg

Workload: LLaMA of 58 M parameters (vocabulary 32,000, d_model 512, 8 layers, 8 heads of 64, SwiGLU 1,376, untied),
8 rows of 512, float32, AdamW with clipping, documents of lognormal lengths (median 123, mean 147 tokens), the second
half of each is completion. A product of two 2048 x 2048 matrices is timed between the steps: the machine's peak then
and there. `--size 0.2m --rows 8 --length 128` times a study's model instead. Judge a busy machine by CPU-seconds.
"""

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers.workload import SHAPE, documents

from dynamics.allocator import keep_freed_memory
from dynamics.data.batches import Batches, compact, trained_cap
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.losses.sft import SFT
from dynamics.model.llama import SIZES, LlamaConfig, init
from dynamics.train.optimizer import AdamW
from dynamics.train.step import init_state, make_step
from dynamics.tree import num_parameters

REFERENCE = LlamaConfig(
    name="reference", vocab_size=SHAPE["vocab_size"], d_model=SHAPE["hidden_size"],
    num_layers=SHAPE["num_hidden_layers"], num_heads=SHAPE["num_attention_heads"],
    num_kv_heads=SHAPE["num_key_value_heads"], head_dim=SHAPE["head_dim"], d_ff=SHAPE["intermediate_size"],
    rms_eps=SHAPE["rms_norm_eps"], rope_theta=SHAPE["rope_theta"],
)  # fmt: skip
OPTIMIZER = AdamW(
    peak_lr=3e-4, end_lr=0.0, schedule="linear", warmup_steps=10, clip=1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1
)
MATMUL = 2048


def encoded(num: int, *, vocab_size: int, longest: int) -> list[tuple[str, Encoded]]:
    """The documents of the workload, with keys, as a store takes them."""
    made = documents(num, vocab_size=vocab_size, longest=longest)
    return [(f"{number:06d}", Encoded(tokens=ids, trained=trained)) for number, (ids, trained) in enumerate(made)]


def plan(folder: Path, config: LlamaConfig, *, rows: int, length: int, steps: int) -> Batches:
    """Batches for all steps, packed and stored as a study's are."""
    num = int(1.5 * steps * rows * length / 147) + 20 * rows
    pairs = encoded(num, vocab_size=config.vocab_size, longest=length)
    store = TokenStore.build(folder, pairs, manifest={"benchmark": "train_step"})
    return Batches.build(store, [[key for key, _ in pairs]], rows=rows, length=length)


def model_flops(config: LlamaConfig, parameters: int, segments: np.ndarray) -> float:
    """Useful operations of an update: 6 a parameter and token, and causal attention inside each document.

    The input embedding is a look-up and not counted; the head is counted for every token, also where it is skipped.
    """
    tokens = int((segments > 0).sum())
    lengths = np.concatenate([np.bincount(row)[1:] for row in segments]).astype(float)
    attention = 3 * 4 * config.num_layers * config.num_heads * config.head_dim * (lengths * (lengths + 1) / 2).sum()
    counted = parameters - (0 if config.tied_head else config.vocab_size * config.d_model)
    return 6.0 * counted * tokens + attention


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds of this process, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(config: LlamaConfig, *, rows: int, length: int, steps: int, folder: Path) -> dict[str, Any]:
    """Run `steps` updates after one that compiles; one dictionary of medians and of the samples behind them."""
    batches = plan(folder, config, rows=rows, length=length, steps=steps + 1)
    cap = trained_cap(batches.plan, groups=1)
    state = init_state(init(config, jax.random.key(0)), OPTIMIZER, total_steps=1000)
    parameters = num_parameters(state.model)
    step = make_step(SFT(), OPTIMIZER)
    feed = batches.iterate(0, steps + 1, prefetch=2, then=lambda batch: compact(batch, groups=1, cap=cap))
    square = jnp.ones((MATMUL, MATMUL), jnp.float32)
    product = jax.jit(jnp.matmul)
    first, _, (state, _) = timed(lambda: step(state, next(feed)))
    timed(lambda: product(square, square))
    samples = []
    for _ in range(steps):
        waited = time.perf_counter()
        batch = next(feed)
        waited = time.perf_counter() - waited
        wall, cpu, (state, metrics) = timed(lambda state=state, batch=batch: step(state, batch))
        peak_wall, peak_cpu, _ = timed(lambda: [product(square, square) for _ in range(3)])
        segments = np.asarray(batch["segments"]).reshape(rows, length)
        flops, tokens = model_flops(config, parameters, segments), int((segments > 0).sum())
        peak = 3 * 2 * MATMUL**3
        samples.append({
            "wall_s": wall, "cpu_s": cpu, "wait_s": waited, "tokens": tokens, "raw_tokens": rows * length,
            "cpu_s_per_1000_tokens": 1000 * cpu / tokens, "tokens_per_s": tokens / wall,
            "raw_tokens_per_s": rows * length / wall, "matmul_gflops_per_s": peak / peak_wall / 1e9,
            "fraction_of_matmul_peak": (flops / wall) / (peak / peak_wall),
            "fraction_of_matmul_peak_by_cpu_s": (flops / cpu) / (peak / peak_cpu),
        })  # fmt: skip
    assert np.isfinite(step.values(metrics)["loss"]), "a benchmark of a diverged model times nothing"
    medians = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return medians | {
        "input_wait_share": sum(s["wait_s"] for s in samples) / sum(s["wall_s"] + s["wait_s"] for s in samples),
        "first_step_s": first,
        "compile_s": first - medians["wall_s"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "fill": batches.plan.fill,
        "trained_cap": cap,
        "parameters": parameters,
        "samples": samples,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Every step's cost and its share of the peak, so that the spread is seen beside the median."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name, label, goal in (
        (axes[0], "cpu_s_per_1000_tokens", "CPU-s per 1,000 non-padding tokens", 4.8),
        (axes[1], "fraction_of_matmul_peak", "share of the measured matmul peak", 0.55),
    ):
        axis.plot([sample[name] for sample in result["samples"]], "o", color="tab:blue")
        axis.axhline(result[name], color="tab:blue", label=f"median {result[name]:.2f}")
        axis.axhline(goal, color="tab:gray", linestyle="--", label=f"goal {goal}")
        axis.set(xlabel="step", ylabel=label, ylim=(0, None))
        axis.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="timed updates, after one that compiles")
    parser.add_argument("--size", choices=["reference", *SIZES], default="reference")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--scan-layers", action="store_true", help="one compiled block, looped over, as large sizes do")
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help="as a worker does")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--plot", type=Path, help="write a figure here")
    arguments = parser.parse_args()
    kept = keep_freed_memory() if arguments.keep_memory else False
    config = REFERENCE if arguments.size == "reference" else SIZES[arguments.size]
    if arguments.scan_layers:
        config = dataclasses.replace(config, scan_layers=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            config, rows=arguments.rows, length=arguments.length, steps=arguments.steps, folder=Path(folder) / "store"
        )
    settings = {"size": config.name, "rows": arguments.rows, "length": arguments.length, "steps": arguments.steps}
    device = f"{jax.devices()[0].device_kind} x{jax.device_count()}, {platform.machine()}"
    result = settings | {"device": device, "jax": jax.__version__, "kept_freed_memory": kept} | result
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
