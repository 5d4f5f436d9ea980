"""The tables of comparisons as rows of plain values: gaps, rates of exchange, and the mean as it was published."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from dynamics.study.contrast import Contrast
from dynamics.study.curves import Growth
from dynamics.study.exchange import Ratio
from dynamics.study.mixtures import spread

Row = dict[str, Any]


def gap_rows(compared: Sequence[Contrast]) -> list[Row]:
    """One row per ability, size and total that both sources have; total "mean" is the mean over the positive ones."""
    return [row for contrast in compared for row in _gaps(contrast)]


def _gaps(contrast: Contrast) -> Iterator[Row]:
    names = {"source": contrast.human, "against": contrast.other}
    for (ability, size, total), gap in contrast.gaps.items():
        column = contrast.totals.index(total)
        mine, theirs = (contrast.lines[name, ability, size].mean[column] for name in (contrast.human, contrast.other))
        scores = {"score": float(mine), "score_against": float(theirs)}
        yield {**names, "ability": ability, "size": size, "records": total, **scores, **spread("gap", gap)}
    nothing = {"score": None, "score_against": None}
    for (ability, size), gap in contrast.size_gaps.items():
        yield {**names, "ability": ability, "size": size, "records": "mean", **nothing, **spread("gap", gap)}
    for ability, gap in contrast.mean_gaps.items():
        yield {**names, "ability": ability, "size": "mean", "records": "mean", **nothing, **spread("gap", gap)}


def exchange_rows(compared: Sequence[Contrast]) -> list[Row]:
    """One row per ability, size and curated total, and one for the median over totals; empty where not defined."""
    rows = []
    for contrast in compared:
        for (ability, size), exchange in contrast.exchanges.items():
            each = [*exchange.at.items(), ("median", exchange.median)]
            for total, found in each:
                rows.append(
                    {
                        "source": contrast.human,
                        "against": contrast.other,
                        "ability": ability,
                        "size": size,
                        "records": total,
                        **_ratio(found),
                        "outcome": outcome(found, exchange.over),
                    }
                )
    return rows


def outcome(found: Ratio | None, over: str) -> str:
    """What a rate of exchange is, or why there is none."""
    if found is None:
        return f"not defined: no clear gain over {over}"
    if math.isinf(found.at_most):
        return "never reached"
    return "reached at the smallest volume" if found.at_least == 0 else "reached"


def _ratio(found: Ratio | None) -> Row:
    if found is None:
        return {"at_least": None, "at_most": None, "ratio_low": None, "ratio_high": None}
    return {
        "at_least": found.at_least,
        "at_most": _finite(found.at_most),
        "ratio_low": found.low,
        "ratio_high": _finite(found.high),
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def late_rows(compared: Sequence[Contrast]) -> list[Row]:
    """One row per source and ability: the slope over the later half of its totals, all sizes together."""
    return [
        {
            "source": source,
            "ability": ability,
            "from_records": contrast.late_from[source, ability],
            **spread("per_4x", slope),
        }
        for contrast in compared
        for (source, ability), slope in contrast.late.items()
    ]


def published_rows(growths: Sequence[Growth]) -> list[Row]:
    """The mean over all that was measured, in and out of domain, and what the published scorer would print for it.

    Its file holds every score and, beside it, the expected score of guessing; it adds up the scores alone but divides
    by the number of both. So it prints half of the mean. Empty where nothing out of domain was measured.
    """
    return [
        {
            "variant": growth.grid.variant,
            "size": size,
            "volume": growth.grid.volumes[index],
            "abilities": len(growth.abilities),
            **spread("mean_of_all", mean),
            "as_published": mean.value / 2,
        }
        for growth in growths
        for size, means in growth.everything.items()
        for index, mean in enumerate(means)
        if math.isfinite(mean.value)
    ]
