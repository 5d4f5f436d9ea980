"""The published training mix: everything of Conifer and so many conversations of ShareGPT."""

from collections.abc import Mapping
from dataclasses import dataclass

from dynamics.data.recipes import Recipe
from dynamics.errors import UserError

SHAREGPT = "sharegpt"


@dataclass(frozen=True, kw_only=True)
class WithShareGpt(Recipe):
    """Every record of the other abilities, and `sharegpt` of that ability, drawn by hash.

    Conifer was mixed with 53 thousand conversations of ShareGPT, 66 thousand in all; which of its 94,145 were kept was
    not published.
    """

    sharegpt: int

    @property
    def name(self) -> str:
        return f"all-and-{self.sharegpt}-sharegpt"

    def __call__(self, counts: Mapping[str, int]) -> dict[str, int]:
        """UserError with the numbers when there are fewer conversations of ShareGPT."""
        there = counts.get(SHAREGPT, 0)
        if not 0 <= self.sharegpt <= there:
            hint = "lower sharegpt" if there else "give the source a sharegpt_dir, or set sharegpt=0"
            raise UserError(
                f"recipe {self.name!r} takes {self.sharegpt:,} records of {SHAREGPT!r}, which has {there:,}; {hint}"
            )
        taken = {**counts, SHAREGPT: self.sharegpt}
        return {ability: taken[ability] for ability in counts if taken[ability] > 0}
