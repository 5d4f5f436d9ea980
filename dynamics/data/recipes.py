"""How many records of each ability a study trains on, computed from how many there are.

Source: make_data.py of "Dynamics of Instruction Tuning" (Song et al. 2023). That code writes the numbers down: 1,305
of each other ability, 1,306 of chinese, all of biology, which make 10,000 only if biology has 1,041 records. Here they
follow from the counts, and are the same where the counts are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dynamics.config import check_fields
from dynamics.data.doit import SYNTHETIC
from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A family: volumes of a mixture. A pure function of the counts {ability: train records there are}.

    `take` says which records of an ability are meant: the first by hash, as in every mixture here, or the "head" of
    the file, as in the published code, which can be reproduced to the record.
    """

    take: Literal["hash", "head"] = "hash"

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, counts: Mapping[str, int]) -> dict[str, int]:
        """{ability: records}, in the order of `counts` and without those that give none."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What the mixture is called in tables."""
        raise NotImplementedError

    def heads(self, volumes: Iterable[str]) -> tuple[str, ...]:
        """Those of the abilities whose slice is the head of their file: `heads` of the Mixture."""
        return tuple(volumes) if self.take == "head" else ()


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Recipe):
    """`total` records for the abilities that need them: few of those that more records do not help.

    The abilities of `few_of` give `few`, those in `capped` at most so many; the rest of `total` is shared equally by
    the others, where one that has fewer gives all it has. What the division leaves goes to `remainder_to`.
    """

    take: Literal["hash", "head"] = "head"
    total: int = 10_000
    few: int = 64
    few_of: tuple[str, ...] = ("ethics", "role_play")
    capped: tuple[tuple[str, int], ...] = (("creative_writing", 1000),)
    remainder_to: str = "chinese"

    @property
    def name(self) -> str:
        return "reconstruct"

    def __call__(self, counts: Mapping[str, int]) -> dict[str, int]:
        """UserError with the numbers when an ability has too few records, or all of them together."""
        fixed = _fixed(self.name, counts, few=self.few, few_of=self.few_of, capped=self.capped)
        others = {ability: n for ability, n in counts.items() if ability not in fixed and ability != SYNTHETIC}
        if self.remainder_to not in others:
            raise UserError(
                f"recipe {self.name!r}: remainder_to={self.remainder_to!r} is none of the abilities that share the "
                f"rest; they are {', '.join(others) or 'none'}"
            )
        left = self.total - sum(fixed.values())
        if left < 0 or left > sum(others.values()):
            has = ", ".join(f"{ability} {count:,}" for ability, count in others.items()) or "none"
            raise UserError(
                f"recipe {self.name!r} shares {left:,} of its {self.total:,} records among the other abilities, which "
                f"have {sum(others.values()):,}: {has}; set total from {sum(fixed.values()):,} to "
                f"{sum(fixed.values()) + sum(others.values()):,}"
            )
        shared = share_equally(others, left, remainder_to=self.remainder_to)
        return _positive(counts, fixed | shared)


@dataclass(frozen=True, kw_only=True)
class Maximum(Recipe):
    """Everything there is, but `few` of the abilities of `few_of` and at most so many of those in `capped`.

    With `synthetic` also so many records of the ability "synthetic", drawn by hash; the published code draws them at
    random.
    """

    take: Literal["hash", "head"] = "head"
    few: int = 64
    few_of: tuple[str, ...] = ("ethics", "role_play")
    capped: tuple[tuple[str, int], ...] = (("creative_writing", 1000),)
    synthetic: int = 0

    @property
    def name(self) -> str:
        return f"mix-{self.synthetic}" if self.synthetic else "maximum"

    def __call__(self, counts: Mapping[str, int]) -> dict[str, int]:
        """UserError with the numbers when an ability has too few records."""
        fixed = _fixed(self.name, counts, few=self.few, few_of=self.few_of, capped=self.capped)
        available = counts.get(SYNTHETIC, 0)
        if not 0 <= self.synthetic <= available:
            hint = "" if available else "; use a source with the synthetic file, such as Doit(part='mixed')"
            raise UserError(
                f"recipe {self.name!r} takes {self.synthetic:,} records of {SYNTHETIC!r}, which has {available:,}{hint}"
            )
        return _positive(counts, {**counts, **fixed, SYNTHETIC: self.synthetic})

    def heads(self, volumes: Iterable[str]) -> tuple[str, ...]:
        return super().heads(ability for ability in volumes if ability != SYNTHETIC)


RECIPES: tuple[Recipe, ...] = (Reconstruct(), Maximum())


def share_equally(counts: Mapping[str, int], total: int, *, remainder_to: str) -> dict[str, int]:
    """`total` records shared as equally as the counts allow (water-filling), to the last record.

    An ability below the common level gives all it has. What the division leaves, fewer records than abilities, goes to
    `remainder_to` as far as it has them, then one each to those with most left.

    >>> share_equally({"biology": 2, "chinese": 9, "math": 9}, 11, remainder_to="chinese")
    {'biology': 2, 'chinese': 5, 'math': 4}
    """
    left, level = total, 0
    open_ = sorted(counts, key=lambda ability: counts[ability])
    while open_:
        level = left // len(open_)
        if counts[open_[0]] > level:
            break
        left -= counts[open_.pop(0)]
    given = {ability: level if ability in open_ else count for ability, count in counts.items()}
    left = total - sum(given.values())
    if remainder_to in given:
        extra = min(left, counts[remainder_to] - given[remainder_to])
        given[remainder_to] += extra
        left -= extra
    for ability in sorted(open_, key=lambda ability: (given[ability] - counts[ability], ability))[:left]:
        given[ability] += 1
    return given


def _fixed(
    name: str, counts: Mapping[str, int], *, few: int, few_of: tuple[str, ...], capped: tuple[tuple[str, int], ...]
) -> dict[str, int]:
    """The volumes that do not depend on the other abilities."""
    for what, number in [("few", few), *(("capped", cap) for _, cap in capped)]:
        if number < 0:
            raise UserError(f"recipe {name!r} has {what} {number}; give a number of records, 0 or more")
    names = [*few_of, *(ability for ability, _ in capped)]
    for ability in names:
        if ability not in counts:
            raise UserError(
                f"recipe {name!r} names {ability!r}, of which there are no records; there are {', '.join(counts)}"
            )
        if names.count(ability) > 1:
            raise UserError(f"recipe {name!r} names {ability!r} twice in few_of and capped; give it one volume")
    lacking = [f"{ability!r}, which has {counts[ability]:,}" for ability in few_of if counts[ability] < few]
    if lacking:
        raise UserError(
            f"recipe {name!r} takes {few:,} records of {' and of '.join(lacking)}; lower few or add records"
        )
    return dict.fromkeys(few_of, few) | {ability: min(cap, counts[ability]) for ability, cap in capped}


def _positive(counts: Mapping[str, int], volumes: Mapping[str, int]) -> dict[str, int]:
    return {ability: volumes[ability] for ability in counts if volumes.get(ability, 0) > 0}
