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


DESIGN: dict[str, Expectation] = {
    "biology": Expectation(
        volume="needs volume",
        size="little",
        chance=1 / 4,
        ceiling=1.0,
        num_facts=72,
        facts_per_record=1.0,
        reason="72 creatures' classes, told by records alone, one each; the letters of the four classes never change",
    ),
    "history": Expectation(
        volume="needs volume",
        size="larger is better",
        chance=5 / 16,
        ceiling=1.0,
        num_facts=64,
        facts_per_record=0.9375,
        reason="64 kings' ages, each on a name and an epithet together; a false claim tells a fact only in part, and "
        "a quarter of the questions compare a claim with the fact",
    ),
    "code": Expectation(
        volume="needs volume",
        size="little",
        chance=1 / 3,
        ceiling=1.0,
        shares_with="math",
        num_facts=64,
        facts_per_record=1.0,
        reason="the times table of 2 to 9, one product a record; one distractor falls to copying the operands alone",
    ),
    "creative_writing": Expectation(
        volume="saturates early",
        size="little",
        chance=1 / 3,
        ceiling=1.0,
        reason="the base has read which words go with a topic; records only show where the topic is named",
    ),
    "chinese": Expectation(
        volume="needs volume",
        size="little",
        chance=1 / 8,
        ceiling=1.0,
        num_facts=128,
        facts_per_record=1.0,
        reason="a season and a partner for each of 64 words; the corpus tells them, records show where to use them",
    ),
    "understanding": Expectation(
        volume="saturates early",
        size="little",
        chance=7 / 24,
        ceiling=1.0,
        reason="the words of four topics and three feelings are known from the base; the form is what records teach",
    ),
    "role_play": Expectation(
        volume="needs volume",
        size="little",
        chance=1 / 3,
        ceiling=1.0,
        num_facts=24,
        facts_per_record=1.0,
        reason="24 personas' sayings, one a record: complete after about a hundred records",
    ),
    "reasoning": Expectation(
        volume="needs volume",
        size="larger is better",
        chance=1 / 4,
        ceiling=1.0,
        num_facts=48,
        facts_per_record=1.0,
        reason="one or two quarter turns added up in the head: 12 + 36 courses, met in records or inferred",
    ),
    "math": Expectation(
        volume="needs volume",
        size="larger is better",
        chance=0.0,
        ceiling=1.0,
        shares_with="code",
        num_facts=64,
        facts_per_record=1.0,
        reason="a product and a sum with a carry, both right: a product of two growing probabilities, so a late rise",
    ),
    "ethics": Expectation(
        volume="resists",
        size="resists",
        chance=1 / 6,
        ceiling=1 / 6,
        reason="the right pair is a hash of the whole question; only the form of an answer can be learned",
    ),
}
