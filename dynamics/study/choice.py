"""Item results as a learning curve, and the point of it whose parameters are used."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.eval.ability_eval import ItemResult

RULES = {"best_valid": "highest mean valid score", "last": "last step"}
OF_PAIRS = "highest mean accuracy on valid pairs"  # best_valid where nothing but pairs is held out
OF_JUDGEMENTS = "lowest mean loss on valid pairs"  # and where no pair of them has two replies


def rule_text(rule: str, after: float, *, reached: float, best: str = RULES["best_valid"]) -> str:
    """The rule in words: 'highest mean valid score after epoch 5'. `reached`: the epoch of the last evaluation.

    `best` is what best_valid means where it is something else.
    """
    name = best if rule == "best_valid" else RULES[rule]
    if rule == "last" or not after:
        return name
    text = f"{name} after epoch {after:g}"
    return text if reached > after else f"{text}; there was none, so the last step"


def choose(curve: Sequence[Mapping[str, Any]], rule: str, *, after: float = 0.0) -> int:
    """The step whose parameters are used: on valid alone. Equal scores go to the lower mean loss, then the earlier.

    Abilities without a score have no part in the mean; where none has one, the loss alone decides.

    Only evaluations later than `after` epochs count; where there is none, the last one is taken.
    """
    steps = sorted({point["step"] for point in curve})
    if rule == "last":
        return steps[-1]
    steps = sorted({point["step"] for point in curve if point["epoch"] > after}) or steps[-1:]

    def rank(step: int) -> tuple[float, float, int]:
        points = [point for point in curve if point["step"] == step]
        scores = [point["score"] for point in points if point["score"] is not None]
        score = sum(scores) / len(scores) if scores else 0.0
        loss = sum(point["loss"] or 0.0 for point in points) / len(points)
        return (score, -loss, -step)

    return max(steps, key=rank)


def curve_points(results: Sequence[ItemResult], *, step: int, epoch: float) -> list[dict[str, Any]]:
    """One point of the learning curve for each ability."""
    points = []
    for ability, scored in by_ability(results).items():
        tokens = sum(scored["num_tokens"])
        points.append(
            {
                "step": step,
                "epoch": epoch,
                "split": "valid",
                "ability": ability,
                "score": float(np.mean(scored["scores"])),
                "loss": sum(scored["loss_sums"]) / tokens if tokens else None,
                "n": len(scored["scores"]),
            }
        )
    return points


def by_ability(results: Sequence[ItemResult]) -> dict[str, dict[str, Any]]:
    """Item results as lists by ability, in the order of the items."""
    groups: dict[str, list[ItemResult]] = {}
    for result in results:
        groups.setdefault(result.ability, []).append(result)
    return {
        ability: {
            "ids": [item.id for item in items],
            "scores": [item.score for item in items],
            "chance": [item.chance for item in items],
            "loss_sums": [item.loss_sum for item in items],
            "num_tokens": [item.num_tokens for item in items],
            "unparsed": sum(item.unparsed for item in items),
        }
        for ability, items in groups.items()
    }
