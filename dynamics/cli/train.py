"""`dynamics train` and `dynamics eval`."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from dynamics.allocator import keep_freed_memory
from dynamics.cli.options import load_run, mesh_shape
from dynamics.cli.stopping import is_lead, together


def train(options: argparse.Namespace) -> int:
    """Train one run and print its scores on test."""
    keep_freed_memory()
    with together(options):  # the loop itself saves at SIGTERM; this is for what comes before and after it
        from dynamics.study.coordinator import keep_programs
        from dynamics.study.prepare import Workspace, cache_folder
        from dynamics.study.single import train_run

        run = load_run(options)
        if run.order.difficulty is not None:
            print(f"order: {run.order.name}; what comes when: dynamics data order {options.config}", file=sys.stderr)
        keep_programs(cache_folder())
        folder, scores = train_run(run, options.output, Workspace(cache_folder()), _Fraction())
        if is_lead():
            _print_scores(options, folder, scores)
    return 0


def _print_scores(options: argparse.Namespace, folder: Path, scores: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps({"folder": str(folder), "scores": scores}))
        return
    record = scores["run"]
    for reason in record["walked_back"]:
        print(f"note: a damaged checkpoint was not used: {reason}", file=sys.stderr)
    loss = "none" if record["final_loss"] is None else f"{record['final_loss']:.4f}"
    print(f"{folder}: {record['steps']} steps, {record['tokens']:,} tokens, final training loss {loss}")
    print(f"parameters of step {scores['chosen']['step']} ({scores['chosen']['rule']}); test:")
    for ability, result in scores["test"].items():
        mean, chance = _mean(result["scores"]), _mean(result["chance"])
        nats = sum(result["loss_sums"]) / max(1, sum(result["num_tokens"]))
        print(f"  {ability:18} score {mean:.3f} (chance {chance:.3f})  loss {nats:.3f} nats/token")
    for ability, told in scores.get("preferences", {"test": {}})["test"].items():
        before, after = (_pair_means(told, when) for when in ("before", "after"))
        print(f"  {ability:18} {len(told['ids'])} pairs: {before} -> {after}")
    for found in scores.get("benchmarks", ()):
        print(
            f"{found['benchmark']} {found['shots']}-shot after epoch {found['epoch']:g}: mean of tasks "
            f"{found['macro']:.3f} (chance {found['chance_macro']:.3f}), of items {found['micro']:.3f} (chance "
            f"{found['chance_micro']:.3f})"
        )


def evaluate(options: argparse.Namespace) -> int:
    """Score a finished run's model on each ability."""
    from dynamics.study.prepare import Workspace, cache_folder
    from dynamics.study.single import score_run

    overall, num_rejected = score_run(
        options.model,
        Workspace(cache_folder()),
        split=options.split,
        files=options.records or (),
        shape=mesh_shape(options.mesh) if options.mesh else None,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(overall) | {"rejected": num_rejected}))
        return 0
    print(
        f"{'ability':18} {'score':>6} {'s.e.':>6} {'chance':>6} {'loss':>6} {'items':>6} {'unparsed':>8} {'cut':>5} "
        f"{'too long':>8}"
    )
    for one in overall.abilities.values():
        print(
            f"{one.ability:18} {one.score:6.3f} {_number(one.standard_error):>6} {one.chance:6.3f} "
            f"{_number(one.loss):>6} {one.num_items:6} {one.num_unparsed:8} {one.num_truncated:5} "
            f"{one.num_too_long:8}"
        )
    error, loss = _number(overall.standard_error), _number(overall.loss)
    print(f"{'mean of abilities':18} {overall.score:6.3f} {error:>6} {overall.chance:6.3f} {loss:>6}")
    if num_rejected:
        print(f"lines that gave no item (bad, or the content of another line again): {num_rejected}")
    return 0


class _Fraction:
    """Progress of one run, a line now and then on standard error."""

    def __init__(self, *, interval: float = 5.0) -> None:
        self._interval = interval
        self._began = time.monotonic()
        self._last = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        spent = now - self._began
        left = f", about {spent / fraction - spent:.0f} s left" if fraction > 0.02 else ""
        print(f"{fraction:.0%} after {spent:.0f} s{left}", file=sys.stderr)


def _pair_means(told: dict[str, Any], when: str) -> str:
    """'loss 0.693, accuracy 0.500, margin +0.000', '-' for what no pair has."""
    values = told[when]

    def mean(name: str, weights: list[float]) -> float | None:
        known = [(value, weight) for value, weight in zip(values[name], weights, strict=True) if value is not None]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    loss, accuracy, margin = (
        mean("loss", values["count"]), mean("accuracy", told["weight"]), mean("margin", told["weight"])
    )  # fmt: skip
    signed = "-" if margin is None else f"{margin:+.3f}"
    return f"loss {_number(loss)}, accuracy {_number(accuracy)}, margin {signed}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
