"""Pacing: how large a share of the records, the easiest first, is open when a share of the time is past.

    Linear     c = c0 + (1 - c0) t                        as many new records at any time
    Root       c = (c0^p + (1 - c0^p) t)^(1/p)            most new records early, each then seen as often
    Geometric  c = c0^(1 - t)                             most new records late; in steps with `buckets`

`t` runs from 0 to 1 over the part `until` of the time; after it everything is open.
"""

import math
from dataclasses import dataclass

from dynamics.config import check_fields
from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """A family: time past -> share of the records that is open, both from 0 to 1; never falls."""

    start: float = 0.01  # the share that is open at first, the paper's c0
    until: float = 1.0  # the share of the time after which everything is open

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.start <= 1:
            raise UserError(f"start={self.start}; give the share of the records that is open at first, above 0 up to 1")
        if not 0 < self.until <= 1:
            raise UserError(f"until={self.until}; give the share of the time after which all is open, above 0 up to 1")

    def __call__(self, time: float) -> float:
        if time >= self.until:
            return 1.0
        return min(1.0, max(self.start, self.grown(time / self.until)))

    def grown(self, time: float) -> float:
        """The share at a time below 1, `start` at 0."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """'root from 1%', and what else differs from the usual."""
        until = "" if self.until == 1 else f" until {100 * self.until:g}%"
        return f"{type(self).__name__.lower()}{self._more()} from {100 * self.start:g}%{until}"

    def _more(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Linear(Pacing):
    """As many new records at any time.

    Source: Platanios et al. 2019, "Competence-based curriculum learning", its linear competence.
    """

    def grown(self, time: float) -> float:
        return self.start + (1 - self.start) * time


@dataclass(frozen=True, kw_only=True)
class Root(Pacing):
    """New records come ever more slowly, in inverse proportion to how many are open; `power` 2 is the square root.

    Source: Platanios et al. 2019, its square root competence (where c0 is 0.01) and the root of any power.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.power < math.inf:
            raise UserError(f"power={self.power}; give a finite number from 1 (linear) on")

    def grown(self, time: float) -> float:
        first = self.start**self.power
        return (first + (1 - first) * time) ** (1 / self.power)

    def _more(self) -> str:
        return "" if self.power == 2 else f" {self.power:g}"


@dataclass(frozen=True, kw_only=True)
class Geometric(Pacing):
    """The open share grows by a constant factor: smoothly, or in `buckets` equal times, the last of which has all.

    Source: Penha and Hauff 2020, "Curriculum learning strategies for IR", its geometric pacing (smooth); Hacohen and
    Weinshall 2019, "On the power of curriculum learning", fixed exponential pacing (steps): there the factor is given,
    here it follows from the start and the number of buckets.
    """

    buckets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets is not None and self.buckets < 2:
            raise UserError(f"buckets={self.buckets}; give 2 or more, or None for a smooth growth")

    def grown(self, time: float) -> float:
        if self.buckets is not None:
            time = math.floor(time * self.buckets) / (self.buckets - 1)
        return self.start ** (1 - time)

    def _more(self) -> str:
        return "" if self.buckets is None else f" in {self.buckets} buckets"


PACINGS: tuple[Pacing, ...] = (Linear(), Root(), Geometric(), Geometric(buckets=4))
