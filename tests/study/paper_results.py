"""Results of a study like the paper's that never ran, around a known truth.

Two sources, mixtures, cells of one ability, benchmarks.

A synthetic record is worth 1/RATE of a curated one in every ability: the synthetic curve is the curated one with RATE
times the records, up to PEAK records, beyond which it falls. Transfer: math and code raise each other, nothing else.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynamics.record import ABILITY_NAMES

from .synthetic_results import answers, result

PARAMS = {"7b": 6_738_415_616, "13b": 13_015_864_320}
OUTSIDE = ("ceval_physician", "ceval_teacher_qualification", "ceval_urban_and_rural_planner")
MEASURED = (*ABILITY_NAMES, *OUTSIDE)
FLAT = ("ethics", "role_play", *OUTSIDE)
RATE, PEAK, FALL = 8.0, 2560, 0.05  # FALL: per factor 4 of synthetic records beyond PEAK
UNTUNED = 0.25
BENCHMARKS = {"cmmlu": {f"subject {n}": 20 + n for n in range(12)}, "agieval": {"logiqa-zh": 60, "gaokao": 40}}
TRAINED_ALONE = ("math", "code", "biology")
GAIN_ALONE = {("math", "math"): 0.3, ("code", "code"): 0.3, ("biology", "biology"): 0.3, ("math", "code"): 0.2,
              ("code", "math"): 0.2}  # fmt: skip


def curated(ability: str, size: str, total: float) -> float:
    """The chance of a right answer after `total` curated records; straight in their logarithm."""
    if total == 0:
        return UNTUNED
    if ability in FLAT:
        return UNTUNED
    return 0.3 + 0.05 * np.log(total / 10) / np.log(4) + (0.04 if size == "13b" else 0.0)


def synthetic(ability: str, size: str, total: float) -> float:
    """The same curve at RATE times the records; beyond PEAK it falls."""
    if total == 0 or ability in FLAT:
        return UNTUNED
    rising = 0.3 + 0.05 * np.log(min(total, PEAK) / RATE / 10) / np.log(4) + (0.04 if size == "13b" else 0.0)
    return rising - FALL * max(0.0, np.log(total / PEAK) / np.log(4))


class Maker:
    """Draws answers of cells that share items; seeds shift an ability up or down a little."""

    def __init__(self, *, seed: int = 0, num_items: int = 100, seed_sd: float = 0.015) -> None:
        self.draw = np.random.default_rng(seed)
        self.item = {ability: self.draw.uniform(-0.1, 0.1, num_items) for ability in MEASURED}
        self.seed_sd = seed_sd
        self.seeds: dict[Any, float] = {}

    def cell(self, p_of: Callable[[str], float], **coords: Any) -> dict[str, Any]:
        test = {}
        for ability in MEASURED:
            key = coords["source"], coords["seed"], ability
            shift = self.seeds.setdefault(key, float(np.clip(self.draw.normal(0, self.seed_sd), -0.05, 0.05)))
            p = p_of(ability)
            shifted = p + self.item[ability] + (shift if coords["volume"] else 0.0)
            test[ability] = answers(self.draw, ability, np.clip(shifted, 0, 1), min(p, 0.9), 0.25)
        coords = {"params": PARAMS[coords["size"]], "order": "interleaved", **coords}
        made = result(coords, test)
        made["run"]["counts"]["records"] = coords["records"]
        return made


def grid(
    maker: Maker,
    source: str,
    truth: Any,
    totals: Sequence[int],
    sizes: Sequence[str],
    seeds: Sequence[int],
    **more: Any,
) -> list[dict[str, Any]]:
    """Cells of one source over sizes, totals and seeds; total 0 once per size."""
    per = 1 if source == "synthetic" else len(ABILITY_NAMES)
    return [
        maker.cell(
            lambda ability, size=size, total=total: truth(ability, size, total),
            size=size, volume=total // per, records=total, seed=seed, source=source, mixture="even", abilities="all",
            **more,
        )
        for size in sizes
        for total in totals
        for seed in (seeds[:1] if total == 0 else seeds)
    ]  # fmt: skip


def make_paper_results(
    *,
    sizes: Sequence[str] = ("7b", "13b"),
    seeds: Sequence[int] = (0, 1, 2),
    curated_totals: Sequence[int] = (0, 10, 40, 160, 640, 2560, 10_000),
    synthetic_totals: Sequence[int] = (0, 10, 40, 160, 640, 2560, 10_000, 40_960),
    with_benchmarks: bool = True,
    seed: int = 0,
    num_items: int = 100,
) -> list[dict[str, Any]]:
    """The whole study: sources over volumes, mixtures, one ability at a time, benchmarks on the mixtures."""
    maker = Maker(seed=seed, num_items=num_items)
    made = grid(maker, "curated", curated, curated_totals, sizes, seeds)
    made += grid(maker, "synthetic", synthetic, synthetic_totals, sizes, seeds)
    untuned: dict[str, Any] = {}
    for cell in made:  # both sources start from one model
        if cell["coords"]["volume"] == 0:
            cell["test"] = untuned.setdefault(cell["coords"]["size"], cell["test"])
    gains = {"reconstruct": 0.02, "maximum": 0.06, "mix-2560": 0.07, "mix-40960": -0.04}
    records = {"reconstruct": 10_000, "maximum": 39_618, "mix-2560": 42_178, "mix-40960": 80_578}
    base = curated_totals[-1]
    for (name, gain), size, s in ((item, size, s) for item in gains.items() for size in sizes[:1] for s in seeds):
        made.append(
            maker.cell(
                lambda ability, gain=gain, size=size: curated(ability, size, base) + (0 if ability in FLAT else gain),
                size=size,
                volume=round(records[name] / 10),
                records=records[name],
                seed=s,
                source="mixed" if name.startswith("mix-") else "full",
                mixture=name,
                abilities="all",
            )
        )
    for alone, s in ((alone, s) for alone in TRAINED_ALONE for s in seeds):
        made.append(
            maker.cell(
                lambda ability, alone=alone: UNTUNED + GAIN_ALONE.get((alone, ability), 0.0),
                size=sizes[0],
                volume=1000,
                records=1000,
                seed=s,
                source="curated",
                mixture="even",
                abilities=alone,
            )
        )
    if with_benchmarks:
        level = {"even": 0.35, "reconstruct": 0.36, "maximum": 0.42, "mix-2560": 0.42, "mix-40960": 0.3}
        for cell in made:
            coords = cell["coords"]
            whole = coords["source"] in ("full", "mixed") or coords["records"] == base
            if (
                coords["size"] == sizes[0]
                and coords["abilities"] == "all"
                and whole
                and coords["source"] != "synthetic"
            ):
                cell["benchmarks"] = readings(maker.draw, level[coords["mixture"]])
    return made


def readings(draw: np.random.Generator, p: float, epochs: Sequence[int] = (5, 10, 15)) -> list[dict[str, Any]]:
    """A run's readings of both benchmarks at 0 and 5 examples, as scores.json holds them."""
    return [
        {**benchmark_entry(draw, name, shots, p), "step": 157 * epoch, "epoch": float(epoch)}
        for epoch in epochs
        for name in BENCHMARKS
        for shots in (0, 5)
    ]


def benchmark_entry(draw: np.random.Generator, name: str, shots: int, p: float) -> dict[str, Any]:
    tasks = {}
    for task, count in BENCHMARKS[name].items():
        marks = "".join("1" if right else "0" for right in draw.random(count) < p)
        tasks[task] = {"correct": marks, "chance": 0.25, "ids": hashlib.sha256(task.encode()).hexdigest()[:16]}
    each = [(one["correct"].count("1"), len(one["correct"])) for one in tasks.values()]
    macro = float(np.mean([right / count for right, count in each]))
    micro = sum(right for right, _ in each) / sum(count for _, count in each)
    return {
        "benchmark": name, "shots": shots, "letters": "bare", "num_items": sum(count for _, count in each),
        "macro": macro, "micro": micro, "chance_macro": 0.25, "chance_micro": 0.25, "macro_se": 0.01, "micro_se": 0.01,
        "counts": {"too_long": 0, "shots_dropped": 0, "left_out": 0}, "tasks": tasks, "seconds": 1.0,
    }  # fmt: skip
