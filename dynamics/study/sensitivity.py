"""How much an ability answers to data and to size, said in numbers with intervals and in a plain verdict.

A slope is a least-squares line of the mean score over log4(volume), or over log2(parameters), with an intercept of its
own for every size (or every volume). Its interval comes from the same replicates as everything else. Verdicts follow
from intervals alone; "clear" means that the interval leaves zero out.

    data    falls with data             the slope is clearly below zero
            saturates early at v        the slope is clear, but clearly smaller over the later half of the volumes than
                                        over the earlier half, and after v nothing more is clearly gained, v lying in
                                        the earlier half. Or: no clear slope, but both the smallest volume and the
                                        largest are clearly above the model before tuning
            saturates at v              the same with v in the later half, before the largest volume
            responds to data            the slope is clear otherwise
            resists data                no clear slope, and clearly less than the mean over abilities
            no clear response to data   no clear slope, and not clearly less than the mean: the study cannot tell
    size    needs size                  the slope at large volumes is clear, and the smallest size gains nothing clear
                                        from data while the largest does, clearly more
            responds to size            the slope at large volumes is clear otherwise
            falls with size, resists size, no clear response to size       as for data

"Later" and "earlier half" share the middle volume; "large volumes" are the largest third, rounded up.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from dynamics.study.fits import log4
from dynamics.study.points import Interval, interval

Replicates = Mapping[str, Float[np.ndarray, "reps sizes volumes"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Score change per factor 4 of data and per factor 2 of parameters; None where the study has no such axis."""

    ability: str
    data: Interval | None  # over all volumes
    data_early: Interval | None  # over the earlier half of the volumes
    data_late: Interval | None
    size: Interval | None  # at large volumes
    size_all: Interval | None  # over all volumes
    gain_over_untuned: Interval | None  # smallest volume against the model before tuning
    saturation: int | None  # the volume after which nothing more is clearly gained
    data_verdict: str
    size_verdict: str


def slope_weights(
    x: Float[np.ndarray, " points"], there: Bool[np.ndarray, "groups points"]
) -> Float[np.ndarray, "groups points"] | None:
    """W such that sum(W * y) is the common slope of y over x with an intercept per group; None if undetermined."""
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    centered = np.where(there, x - (there * x).sum(axis=1, keepdims=True) / count, 0.0)
    total = (centered * centered).sum()
    return centered / total if total > 0 else None


def data_slope(
    replicates: Float[np.ndarray, "reps sizes volumes"], volumes: Float[np.ndarray, " volumes"]
) -> Float[np.ndarray, " reps"] | None:
    """Score change per factor 4 of data, all sizes together; volumes are positive."""
    weights = slope_weights(log4(volumes), np.isfinite(replicates[0]))
    return None if weights is None else _weighted(replicates, weights)


def size_slope(
    replicates: Float[np.ndarray, "reps sizes volumes"], params: Float[np.ndarray, " sizes"]
) -> Float[np.ndarray, " reps"] | None:
    """Score change per factor 2 of parameters, all volumes together."""
    weights = slope_weights(np.log2(params), np.isfinite(replicates[0]).T)
    return None if weights is None else _weighted(replicates, weights.T)


def _weighted(replicates: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " reps"]:
    return np.where(weights != 0, weights * np.nan_to_num(replicates), 0.0).sum(axis=(1, 2))


def sensitivities(
    scores: Replicates, params: Sequence[int], volumes: Sequence[int], *, overall: str, level: float
) -> tuple[Sensitivity, ...]:
    """One row per ability and one for the overall mean, against which "resists" is judged."""
    return tuple(
        _sensitivity(name, draws, scores[overall], np.array(params, float), np.array(volumes, float), level)
        for name, draws in scores.items()
    )


def _sensitivity(
    name: str, draws: np.ndarray, mean: np.ndarray, params: np.ndarray, volumes: np.ndarray, level: float
) -> Sensitivity:
    positive = np.flatnonzero(volumes > 0)
    v = volumes[positive]
    tuned, tuned_mean = draws[..., positive], mean[..., positive]
    half = _half(v)
    large = slice(len(v) - -(-len(v) // 3), None)
    slopes = {
        "data": data_slope(tuned, v),
        "early": data_slope(tuned[..., :half], v[:half]) if half < len(v) else None,
        "late": data_slope(tuned[..., -half:], v[-half:]) if half < len(v) else None,
        "size": size_slope(tuned[..., large], params),
        "size_all": size_slope(tuned, params),
        "mean_data": data_slope(tuned_mean, v),
        "mean_size": size_slope(tuned_mean[..., large], params),
    }
    of = {key: _maybe(value, level) for key, value in slopes.items()}
    untuned = _untuned_gain(draws, volumes, level)
    kept = _untuned_gain(draws, volumes, level, at=-1)
    early = bool(untuned and kept and untuned.positive and kept.positive)
    saturation = _saturation(tuned, v, level)
    bends = _difference(slopes["early"], slopes["late"], level)
    data_verdict = _data_verdict(
        of, bends, _difference(slopes["data"], slopes["mean_data"], level), early, saturation, v
    )
    size_verdict = _size_verdict(
        of, _difference(slopes["size"], slopes["mean_size"], level), _needs_size(tuned, v, level)
    )
    return Sensitivity(
        ability=name,
        data=of["data"],
        data_early=of["early"],
        data_late=of["late"],
        size=of["size"],
        size_all=of["size_all"],
        gain_over_untuned=untuned,
        saturation=saturation,
        data_verdict=data_verdict,
        size_verdict=size_verdict,
    )


def _data_verdict(
    of: Mapping[str, Interval | None],
    bends: Interval | None,
    against_mean: Interval | None,
    early: bool,
    saturation: int | None,
    volumes: np.ndarray,
) -> str:
    slope = of["data"]
    if slope is None:
        return "one volume only"
    if slope.negative:
        return "falls with data"
    if slope.positive:
        if saturation is None or saturation >= volumes[-1] or not (bends and bends.positive):
            return "responds to data"
        earlier_half = volumes[: _half(volumes)]
        return f"saturates {'early ' if saturation in earlier_half else ''}at v≈{saturation}"
    if early:
        return f"saturates early at v≤{int(volumes[0])}"
    return "resists data" if against_mean and against_mean.negative else "no clear response to data"


def _half(volumes: np.ndarray) -> int:
    """How many volumes a half has; the two halves share the middle."""
    return len(volumes) // 2 + 1


def _size_verdict(of: Mapping[str, Interval | None], against_mean: Interval | None, needs_size: bool) -> str:
    slope = of["size"]
    if slope is None:
        return "one size only"
    if slope.negative:
        return "falls with size"
    if slope.positive:
        return "needs size" if needs_size else "responds to size"
    return "resists size" if against_mean and against_mean.negative else "no clear response to size"


def _needs_size(tuned: np.ndarray, volumes: np.ndarray, level: float) -> bool:
    """Whether the smallest size gains nothing clear from data, the largest does, and clearly more."""
    slopes = [data_slope(tuned[:, [index]], volumes) for index in (0, -1)]
    smallest, largest = (_maybe(slope, level) for slope in slopes)
    more = _difference(slopes[1], slopes[0], level)
    return bool(smallest and largest and more and not smallest.positive and largest.positive and more.positive)


def _saturation(tuned: np.ndarray, volumes: np.ndarray, level: float) -> int | None:
    """The smallest volume from which on the largest volume is never clearly better; mean over sizes."""
    sizes = np.isfinite(tuned[0]).all(axis=1)
    if not sizes.any() or not len(volumes):  # only models before tuning are finished
        return None
    curve = tuned[:, sizes].mean(axis=1)
    left = [interval(curve[:, -1] - curve[:, index], level=level).positive for index in range(len(volumes))]
    clear = np.flatnonzero(left)
    return int(volumes[clear[-1] + 1]) if len(clear) else int(volumes[0])


def _untuned_gain(draws: np.ndarray, volumes: np.ndarray, level: float, *, at: int = 1) -> Interval | None:
    """The smallest positive volume (or that `at` a place) minus volume 0, mean over the sizes that have both."""
    if volumes[0] != 0 or len(volumes) < 2:
        return None
    gain = draws[..., at] - draws[..., 0]
    there = np.isfinite(gain[0])
    return interval(gain[:, there].mean(axis=1), level=level) if there.any() else None


def _maybe(replicates: np.ndarray | None, level: float) -> Interval | None:
    return None if replicates is None else interval(replicates, level=level)


def _difference(first: np.ndarray | None, second: np.ndarray | None, level: float) -> Interval | None:
    return None if first is None or second is None else interval(first - second, level=level)
