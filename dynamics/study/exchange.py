"""How many records of one source equal one of another: where a curve first reaches given scores.

The score that curated data reach with n records is looked for on the other source's curve: straight lines between its
points over the logarithm of the records, as they are and not made monotone. The *first* reaching counts, since someone
who buys records may stop there; a curve that falls later has still been that high. (A curve made monotone by pooling
would lower the peak of a curve that truly falls, and so answer another question.) Where noise makes a flat curve touch
the score, that draw reaches it: the interval holds such luck, draw by draw.

The curve is known between its smallest and its largest volume only, so an answer may be censored:

    never reached within its largest volume M     the ratio is at least M / n      [M / n, ∞)
    reached at its smallest volume m already      the ratio is at most m / n       (0, m / n]

Every draw is therefore a range [low, high], mostly of no width, and medians and quantiles are taken of both ends.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Ranges = Float[np.ndarray, "2 reps"]  # the two ends of every draw; 0 and infinity where it is censored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """Records of the other source that equal one: the estimate's range, and the interval around it.

    at_least and at_most are equal where the estimate is not censored; at_most is infinite where the score was never
    reached, at_least is 0 where the smallest volume already reaches it. The same holds for low and high.
    """

    at_least: float
    at_most: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        return self.at_least == self.at_most


def reach(
    curve: Float[np.ndarray, "reps points"], totals: Float[np.ndarray, " points"], target: Float[np.ndarray, " reps"]
) -> Ranges:
    """Where each draw of the curve first reaches its target, in records, as a range.

    >>> curve, totals = np.array([[0.2, 0.4, 0.6]]), np.array([10.0, 40.0, 160.0])
    >>> reach(curve, totals, np.array([0.5])).round(6).tolist()
    [[80.0], [80.0]]
    >>> reach(curve, totals, np.array([0.7])).tolist(), reach(curve, totals, np.array([0.1])).tolist()
    ([[160.0], [inf]], [[0.0], [10.0]])
    """
    above = curve >= target[:, None]
    first = above.argmax(axis=1)
    rows = np.arange(len(curve))
    before = np.maximum(first - 1, 0)
    x = np.log(totals)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (target - curve[rows, before]) / (curve[rows, first] - curve[rows, before])
    place = np.exp(x[before] + np.where(first > 0, share, 0.0) * (x[first] - x[before]))
    low = np.where(first == 0, 0.0, place)
    high = np.where(first == 0, totals[0], place)
    never = ~above.any(axis=1)
    return np.stack([np.where(never, totals[-1], low), np.where(never, np.inf, high)])


def ratio(ranges: Sequence[Ranges], volumes: Sequence[int], *, level: float) -> Ratio | None:
    """The median over several volumes of the first source, draw by draw; of one volume, its own ratio."""
    if not ranges:
        return None
    each = np.stack([ends / volume for ends, volume in zip(ranges, volumes, strict=True)])
    low, high = _median(each[:, 0]), _median(each[:, 1])
    tails = ((1 - level) / 2, (1 + level) / 2)
    return Ratio(
        at_least=float(low[0]),
        at_most=float(high[0]),
        low=float(np.quantile(low[1:], tails[0], method="lower")),
        high=float(np.quantile(high[1:], tails[1], method="higher")),
    )


def _median(values: Float[np.ndarray, "volumes reps"]) -> Float[np.ndarray, " reps"]:
    """Median in the logarithm: of an even number the geometric mean of the middle two, 0 and infinity included."""
    ranked = np.sort(values, axis=0)
    half = len(ranked) // 2
    if len(ranked) % 2:
        return ranked[half]
    lower, upper = ranked[half - 1], ranked[half]
    with np.errstate(invalid="ignore"):
        middle = np.sqrt(lower) * np.sqrt(upper)
    return np.where(lower == upper, lower, np.where(lower == 0, 0.0, middle))
