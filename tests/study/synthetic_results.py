"""Results of a study that never ran: item scores drawn around a known truth, in the shape of scores.json."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PARAMS = {"0.2m": 210_000, "0.6m": 640_000, "1.5m": 1_520_000}
VOLUMES = (0, 16, 64, 256, 1024)

# ability -> (chance, mean score at (params, volume)); each is a kind of growth that the analysis must recognise.
Truth = dict[str, tuple[float, Callable[[float, float], float]]]


def _size_step(params: float) -> float:
    return np.log2(params / 210_000)


def _power(floor: float, ceiling: float, exponent: float) -> Callable[[float, float], float]:
    return lambda params, v: floor if v == 0 else ceiling - (ceiling - floor - 0.02) * (v / 16) ** -exponent


def _needs_size(params: float, v: float) -> float:
    return 0.1 + 0.07 * _size_step(params) * np.log(max(v, 16) / 16) / np.log(4)


TRUTH: Truth = {
    "biology": (0.25, lambda p, v: 0.28 if v == 0 else 0.35 + 0.09 * np.log(v / 16) / np.log(4) + 0.05 * _size_step(p)),
    "history": (0.3, lambda p, v: 0.3 if v == 0 else 0.38 + 0.08 * np.log(v / 16) / np.log(4) + 0.04 * _size_step(p)),
    "code": (1 / 3, _power(0.33, 0.95, 0.5)),
    "creative_writing": (1 / 3, _power(0.34, 0.9, 1.6)),
    "chinese": (0.2, lambda p, v: 0.2 if v == 0 else 0.25 + 0.1 * np.log(v / 16) / np.log(4)),
    "understanding": (0.33, lambda p, v: 0.35 if v == 0 else 0.5 + 0.06 * np.log(v / 16) / np.log(4)),
    "role_play": (1 / 3, lambda p, v: 0.4),
    "reasoning": (0.25, lambda p, v: 0.26 + (0.0 if v == 0 else 0.05 * np.log(v / 16) / np.log(4))),
    "math": (0.0, lambda p, v: 0.0 if v == 0 else _needs_size(p, v)),
    "ethics": (1 / 6, lambda p, v: 0.2),
}


def make_results(
    *,
    truth: Truth = TRUTH,
    sizes: Sequence[str] = ("0.2m", "0.6m", "1.5m"),
    volumes: Sequence[int] = VOLUMES,
    seeds: Sequence[int] = (0, 1, 2),
    num_items: int = 100,
    seed_sd: float = 0.02,
    item_spread: float = 0.15,
    seed: int = 0,
    training: str = "all",
    order: str = "interleaved",
) -> list[dict[str, Any]]:
    """One result per cell; volume 0 once per size, as a study stores it.

    An item is right with probability mean + item effect + seed effect. The item effect is uniform, the same in every
    cell, and kept small enough that no probability leaves [0, 1], so the truth is the mean exactly.
    """
    draw = np.random.default_rng(seed)
    item_effect = {ability: draw.uniform(-1, 1, num_items) for ability in truth}
    seed_effect = {(s, ability): np.clip(draw.normal(0, seed_sd), -0.1, 0.1) for s in seeds for ability in truth}
    results = []
    for size in sizes:
        for volume in volumes:
            for s in seeds[:1] if volume == 0 else seeds:
                test = {}
                for ability, (chance, mean) in truth.items():
                    p = mean(PARAMS[size], volume)
                    spread = min(item_spread, p, 1 - p)
                    shifted = p + spread * item_effect[ability] + seed_effect[s, ability] * (spread > 0)
                    test[ability] = answers(draw, ability, np.clip(shifted, 0, 1), p, chance)
                coords = {
                    "size": size,
                    "params": PARAMS[size],
                    "volume": volume,
                    "abilities": training,
                    "seed": s,
                    "source": "practice",
                    "order": order,
                }
                results.append(result(coords, test))
    return results


def answers(draw: np.random.Generator, ability: str, p: np.ndarray, mean: float, chance: float) -> dict[str, Any]:
    tokens = draw.integers(2, 12, len(p))
    losses = tokens * np.exp(draw.normal(np.log(2.2 - 1.8 * mean), 0.2, len(p)))
    return {
        "ids": [f"{ability}-{index}" for index in range(len(p))],
        "scores": (draw.random(len(p)) < p).astype(float).tolist(),
        "chance": [chance] * len(p),
        "loss_sums": losses.round(4).tolist(),
        "num_tokens": tokens.tolist(),
        "unparsed": 1,
    }


def result(coords: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    steps = 0 if coords["volume"] == 0 else 20 + coords["volume"]
    records = coords["volume"] * len(test)
    return {
        "cell": hashlib.sha256(repr(sorted(coords.items())).encode()).hexdigest()[:12],
        "coords": coords,
        "chosen": {"step": steps, "rule": "highest mean valid score"},
        "curve": [],
        "test": test,
        "valid": test,
        "run": {
            "steps": steps,
            "tokens": steps * 1024,
            "epochs": 3.0 if steps else 0.0,
            "train_seconds": steps * 0.01,
            "eval_seconds": 1.5,
            "wait_share": 0.004 if steps else 0.0,
            "device": "cpu",
            "final_loss": 1.0,
            "counts": {"records": records, "rejected": 2, "truncated": 3, "dropped": 5, "distinct_rows": records},
        },
    }


def write_study(folder: Path, results: Sequence[dict[str, Any]]) -> Path:
    """A study's folder as `study run` leaves it: its plan and the scores of its cells."""
    plan = {
        "name": "synthetic",
        "study": {"class": "dynamics.study.grid:Study", "name": "synthetic"},
        "cells": [{"id": result["cell"], "coords": result["coords"], "cost": 1.0} for result in results],
    }
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(plan), encoding="utf-8")
    for result in results:
        cell = folder / "cells" / result["cell"]
        cell.mkdir(parents=True)
        (cell / "scores.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def make_summary(results: Sequence[dict[str, Any]], *, failed: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The summary that a study hands to the report beside its results."""
    cells = [{"cell": result["cell"], "coords": result["coords"], "state": "done"} for result in results]
    return {
        "name": "synthetic",
        "command": "dynamics study run configs/synthetic.py",
        "settings": {"class": "dynamics.study.grid:Study", "name": "synthetic", "seeds": [0, 1, 2]},
        "wall_seconds": 312.5,
        "machine": {"cpu": "a test", "cores": 2, "memory": "8 GiB", "device": "cpu"},
        "counts": {"base corpus records": 4321, "base corpus rejected": 17},
        "speedup": {
            "size": "0.2m",
            "workers": 2,
            "steps_per_second": {"one_after_another": 64.0, "workers": 147.8},
            "speedup": 2.31,
        },
        "git": "0123abc",
        "versions": {"python": "3.11", "jax": "0.10.2", "dynamics": "0.1.0"},
        "cells": [*cells, *failed],
    }
