"""What preference pairs are like, counted one by one: replies, turns, weights and lengths."""

import collections
import statistics
from typing import Any

from dynamics.pair import Pair

_PARTS = ("prompt", "chosen", "rejected")


class PairCounts:
    """Counts the pairs that are added; memory holds a few numbers of each."""

    def __init__(self) -> None:
        self._lengths: dict[str, list[int]] = {part: [] for part in _PARTS}
        self._turns: collections.Counter[int] = collections.Counter()
        self._weights: collections.Counter[float] = collections.Counter()
        self._counts: collections.Counter[str] = collections.Counter()
        self._prompts: set[int] = set()

    def add(self, pair: Pair) -> None:
        self._counts["pairs" if pair.is_full else "desirable" if pair.chosen is not None else "undesirable"] += 1
        self._counts["with a system turn"] += pair.prompt[0].role == "system"
        self._turns[len(pair.prompt)] += 1
        self._weights[pair.weight] += 1
        self._prompts.add(hash(pair.prompt))
        self._lengths["prompt"].append(sum(len(turn.content) for turn in pair.prompt))
        for side in ("chosen", "rejected"):
            reply: str | None = getattr(pair, side)
            if reply is not None:
                self._lengths[side].append(len(reply))
        if pair.chosen is not None and pair.rejected is not None:
            self._counts["chosen is longer"] += len(pair.chosen) > len(pair.rejected)
            self._counts["rejected is longer"] += len(pair.chosen) < len(pair.rejected)

    def summary(self) -> dict[str, Any]:
        """Plain JSON data; lengths in characters, `turns` of prompts with the system turn."""
        names = ("pairs", "desirable", "undesirable", "with a system turn", "chosen is longer", "rejected is longer")
        return {
            **{name.replace(" ", "_"): self._counts[name] for name in names},
            "prompts": len(self._prompts),
            "turns": {str(turns): count for turns, count in sorted(self._turns.items())},
            "weights": {str(weight): count for weight, count in self._weights.most_common(8)},
            "different_weights": len(self._weights),
            "characters": {part: _spread(lengths) for part, lengths in self._lengths.items() if lengths},
        }


def _spread(lengths: list[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "max": max(lengths),
    }


def pair_lines(summary: dict[str, Any]) -> list[str]:
    """The summary as lines to print."""
    lines = []
    if summary["desirable"] + summary["undesirable"]:
        lines.append(f"judged alone: {summary['desirable']:,} desirable, {summary['undesirable']:,} undesirable")
    turns = ", ".join(f"{turns}: {count:,}" for turns, count in summary["turns"].items())
    lines.append(f"different prompts {summary['prompts']:,}; with a system turn {summary['with_a_system_turn']:,}")
    lines.append(f"turns of a prompt: {turns or 'none'}")
    if summary["different_weights"] > 1 or "1.0" not in summary["weights"]:
        weights = ", ".join(f"{weight}: {count:,}" for weight, count in summary["weights"].items())
        more = summary["different_weights"] - len(summary["weights"])
        lines.append(f"weights {weights}{f' and {more} more' if more > 0 else ''}")
    for part, spread in summary["characters"].items():
        numbers = ", ".join(f"{name} {value:,g}" for name, value in spread.items())
        lines.append(f"{part:8} characters: {numbers}")
    if summary["pairs"]:
        longer, shorter = summary["chosen_is_longer"], summary["rejected_is_longer"]
        lines.append(f"the longer reply is chosen in {longer:,} pairs and rejected in {shorter:,}")
    return lines
