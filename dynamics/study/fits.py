"""Laws of growth fitted to replicates: a power law with an offset, and a line in the logarithm of the volume.

    power law    y(v) = offset + gain * (v / v1) ** -exponent      y: error (1 - score) or loss; v1: smallest volume
    log-linear   y(v) = at_one + per_factor_4 * log4(v)            y: score

With five to seven volumes three numbers can be told apart and four cannot, so v1 is the study's smallest volume and not
fitted: `gain` is then what remains to be won at v1, `offset` what no volume reaches, and neither depends on the unit of
v. The model before tuning (volume 0) is no point of the law: it fails at the format of answers first.

For a given exponent the other two numbers are a bounded linear least-squares problem with a closed solution. So the
search is over the exponent alone, from a grid of starts over the whole allowed range, then by golden section around
the best: no gradient, no tolerance that depends on the scale of y, no local minimum. (A known error is to minimise a
*mean* of losses with a default tolerance: the gradient is then small everywhere and the search stops early. Here the
objective is the *sum* of squares, and every replicate is refined to the same relative width of the exponent.)
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from dynamics.study.points import Interval, interval

EXPONENTS = (0.02, 4.0)  # below: a line in log v; above: done within the first factor of 4
_STARTS = 96
_REFINEMENTS = 32
_GOLDEN = (np.sqrt(5) - 1) / 2
_MIN_VOLUMES = 4  # three free numbers

Status = Literal["fitted", "poor fit", "exponent undetermined", "flat", "gets worse", "too few volumes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """The power law of one curve, or the reason why there is none."""

    status: Status
    unit: int  # the smallest volume, v1
    offset: Interval
    gain: Interval
    exponent: Interval
    next_gain: Interval  # by how much the law falls over one more factor of 4 beyond the largest volume
    misfit: float  # share of bootstrap draws whose noise alone leaves larger residuals

    def at(self, volumes: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """The fitted value at other volumes."""
        return self.offset.value + self.gain.value * (volumes / self.unit) ** -self.exponent.value

    @property
    def drawn(self) -> bool:
        """Whether the curve may be shown: a poor fit is reported, not drawn."""
        return self.status in ("fitted", "exponent undetermined")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinear:
    """The line of one curve over log4 of the volume."""

    at_one: Interval
    per_factor_4: Interval
    misfit: float  # as for the power law; NaN when there are two volumes, which a line always meets


def log4(volumes: Float[np.ndarray, " volumes"]) -> Float[np.ndarray, " volumes"]:
    return np.log(volumes) / np.log(4.0)


def fit_log_linear(
    replicates: Float[np.ndarray, "reps volumes"], volumes: Float[np.ndarray, " volumes"], *, level: float
) -> LogLinear | None:
    """Least squares over log4(volume) in every replicate; None with fewer than two volumes. Volumes are positive."""
    there = np.isfinite(replicates[0])
    if there.sum() < 2:
        return None
    x = log4(np.asarray(volumes, dtype=float)[there])
    y = replicates[:, there]
    centered = x - x.mean()
    slope = y @ centered / (centered @ centered)
    middle = y.mean(axis=1)
    return LogLinear(
        at_one=interval(middle - slope * x.mean(), level=level),
        per_factor_4=interval(slope, level=level),
        misfit=_misfit(y - middle[:, None] - slope[:, None] * centered) if there.sum() > 2 else float("nan"),
    )


def _misfit(residuals: Float[np.ndarray, "reps volumes"]) -> float:
    """Share of draws in which noise alone leaves larger residuals than the estimate's: small when the law is wrong."""
    noise = ((residuals[1:] - residuals[0]) ** 2).sum(axis=1)
    return float(np.mean(noise >= (residuals[0] ** 2).sum()))


def solve_power(
    y: Float[np.ndarray, "reps volumes"], ratio: Float[np.ndarray, " volumes"]
) -> tuple[Float[np.ndarray, " reps"], Float[np.ndarray, " reps"], Float[np.ndarray, " reps"]]:
    """(offset, gain, exponent) of y = offset + gain * ratio ** -exponent with offset >= 0 and gain >= 0, per row."""
    logs = np.log(ratio)
    starts = np.linspace(np.log(EXPONENTS[0]), np.log(EXPONENTS[1]), _STARTS)
    errors = np.stack([_solve_linear(y, np.full(len(y), start), logs)[2] for start in starts], axis=1)
    best = errors.argmin(axis=1)
    low, high = starts[np.maximum(best - 1, 0)], starts[np.minimum(best + 1, _STARTS - 1)]
    for _ in range(_REFINEMENTS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        keep_left = _solve_linear(y, left, logs)[2] <= _solve_linear(y, right, logs)[2]
        low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
    middle = (low + high) / 2
    offset, gain, _ = _solve_linear(y, middle, logs)
    return offset, gain, np.exp(middle)


def _solve_linear(
    y: Float[np.ndarray, "reps volumes"],
    log_exponent: Float[np.ndarray, " reps"],
    logs: Float[np.ndarray, " volumes"],
) -> tuple[Float[np.ndarray, " reps"], Float[np.ndarray, " reps"], Float[np.ndarray, " reps"]]:
    """(offset, gain, sum of squares) for given exponents; a bound that binds is met exactly and the other re-solved."""
    x = np.exp(-np.exp(log_exponent)[:, None] * logs[None])
    x_mean, y_mean = x.mean(axis=1), y.mean(axis=1)
    dx, dy = x - x_mean[:, None], y - y_mean[:, None]
    gain = np.maximum((dx * dy).sum(axis=1) / (dx * dx).sum(axis=1), 0.0)
    offset = y_mean - gain * x_mean
    through_zero = np.maximum((x * y).sum(axis=1) / (x * x).sum(axis=1), 0.0)
    gain, offset = np.where(offset < 0, through_zero, gain), np.maximum(offset, 0.0)
    residual = y - offset[:, None] - gain[:, None] * x
    return offset, gain, (residual * residual).sum(axis=1)


def fit_power_law(
    replicates: Float[np.ndarray, "reps volumes"], volumes: Float[np.ndarray, " volumes"], *, level: float
) -> PowerLaw:
    """Fit error or loss against positive volumes, with intervals, or say why not.

    flat                   neither the slope over log volume nor the change from the smallest to the largest volume is
                           clearly downward. No law is fitted; its exponent would be noise
    gets worse             the slope is clearly upward; no law is fitted
    too few volumes        fewer than four volumes have results; no law is fitted
    poor fit               noise alone rarely leaves residuals as large as these (misfit < 1 - level)
    exponent undetermined  the interval of the exponent reaches a bound of EXPONENTS
    """
    there = np.isfinite(replicates[0])
    volumes = np.asarray(volumes, dtype=float)[there]
    y = replicates[:, there]
    unit = int(volumes[0]) if len(volumes) else 0
    if len(volumes) < _MIN_VOLUMES:
        return _no_law("too few volumes", unit)
    slope = interval(y @ (log4(volumes) - log4(volumes).mean()), level=level)
    change = interval(y[:, -1] - y[:, 0], level=level)
    if slope.positive:
        return _no_law("gets worse", unit)
    if not slope.negative and not change.negative:
        return _no_law("flat", unit)
    ratio = volumes / volumes[0]
    offset, gain, exponent = solve_power(y, ratio)
    misfit = _misfit(y - offset[:, None] - gain[:, None] * ratio[None] ** -exponent[:, None])
    ahead = gain * (ratio[-1] ** -exponent - (4 * ratio[-1]) ** -exponent)
    exponents = interval(exponent, level=level)
    open_ended = exponents.low < 1.01 * EXPONENTS[0] or exponents.high > EXPONENTS[1] / 1.01
    return PowerLaw(
        status="poor fit" if misfit < 1 - level else "exponent undetermined" if open_ended else "fitted",
        unit=unit,
        offset=interval(offset, level=level),
        gain=interval(gain, level=level),
        exponent=exponents,
        next_gain=interval(ahead, level=level),
        misfit=misfit,
    )


def _no_law(status: Status, unit: int) -> PowerLaw:
    none = Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    return PowerLaw(
        status=status, unit=unit, offset=none, gain=none, exponent=none, next_gain=none, misfit=float("nan")
    )
