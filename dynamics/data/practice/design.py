"""The ground truth of the practice set: how each ability must grow, and why. The study is checked against this table.

Prose, formulas and measurements: docs/design/practice-set.md.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How the score of one ability must move with volume (records per ability) and with size (parameters)."""

    volume: Literal["saturates early", "needs volume", "resists"]
    size: Literal["little", "larger is better", "resists"]
    chance: float  # expected score of guessing, over the items of a split
    ceiling: float  # what a model that has learned everything there is to learn scores
    shares_with: str | None = None  # the ability whose records teach a part of this one
    num_facts: int | None = None  # how many facts the records must tell; None: a skill
    facts_per_record: float = 0.0  # train records tell so many facts each, on average
    reason: str

    def coverage(self, volume: int) -> float:
        """Share of the facts that at least one of `volume` records tells: 1 - (1 - 1/F)^(volume k)."""
        if self.num_facts is None:
            return 1.0
        return 1.0 - (1.0 - 1.0 / self.num_facts) ** (volume * self.facts_per_record)
