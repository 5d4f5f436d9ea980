"""Orders by difficulty: pure functions of records and their scores, seeded, kept by packing.

    Sorted        1 2 3 4 5 6 7 8        easiest to hardest, or the other way round
    Staged        2 1 3 | 5 4 6 | 8 7    stage after stage; each shuffled, or its abilities interleaved
      replay      2 1 3 | 5 1 4 6 | ...  with some records of earlier stages again
    Paced         1 3 2 5 4 8 6 7        from an opening pool of the easiest, every record once
    Competence    1 1 2 1 4 2 3 6        from an opening pool of the easiest, with repeats: the paper's own
    BlockedBy     a a a c c c b b b      ability after ability, the easiest on average first

Random is `Shuffled`, mixed evenly `Interleaved`, ability after ability `Blocked`, all in `mixture.py`.

Equal difficulties come in the order of a seeded hash: records that are all alike are simply shuffled. Where a record
comes more than once in an epoch (Staged with replay, Competence), `repeats` of a table or a run counts it.
"""

# ruff: noqa: RUF009 - settings are frozen, so one instance may be the default of all

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dynamics.data.difficulty import Difficulty, Length, check_scores
from dynamics.data.mixture import (
    ORDERS,
    Blocked,
    Order,
    Planned,
    Scores,
    Shuffled,
    check_groups,
    document_key,
    spread,
)
from dynamics.data.pacing import Pacing, Root
from dynamics.errors import UserError
from dynamics.seeds import name_hash, stream

_MOST_STAGES = 20  # as many different difficulties become stages of their own without `stages`


@dataclass(frozen=True, kw_only=True)
class Curriculum(Order):
    """A family: an order by difficulty, for the first `epochs` epochs or for all; after them a shuffle.

    With `within_abilities` each ability goes through its own curriculum, and the abilities are interleaved evenly.
    """

    by: Difficulty
    hardest_first: bool = False
    within_abilities: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs={self.epochs}; give the epochs that are ordered, 1 or more, or None for all")

    def __call__(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None = None
    ) -> list[Planned]:
        check_groups(groups)
        if self.epochs is not None and epoch >= self.epochs:
            return self.afterwards(groups, seed=seed, epoch=epoch, scores=scores)
        own = check_scores(scores, [document_key((name, id)) for name, ids in groups.items() for id in ids], self.name)
        ranked = {
            name: self.ranked([(name, id) for id in ids], own, seed=seed, epoch=epoch) for name, ids in groups.items()
        }
        if self.within_abilities:
            return self.separately(ranked, own, seed=seed, epoch=epoch)
        together = self.ranked([one for ids in ranked.values() for one in ids], own, seed=seed, epoch=epoch)
        return self.together(together, own, seed=seed, epoch=epoch)

    def ranked(self, records: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        """What comes first is first: by difficulty, then by a seeded hash that no other record plays a part in."""
        sign = -1 if self.hardest_first else 1
        return sorted(
            records,
            key=lambda one: (sign * scores[document_key(one)], name_hash("ranked", seed, epoch, *one), one),
        )

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        """One epoch over ranked records."""
        raise NotImplementedError

    def separately(
        self, ranked: Mapping[str, Sequence[Planned]], scores: Scores, *, seed: int, epoch: int
    ) -> list[Planned]:
        """One epoch in which each ability goes its own way."""
        own = {
            name: [id for _, id in self.together(records, scores, seed=name_hash(name, seed), epoch=epoch)]
            for name, records in ranked.items()
        }
        return spread(own, seed=seed, epoch=epoch)

    def afterwards(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None
    ) -> list[Planned]:
        """An epoch after the curriculum: every record once, shuffled."""
        del scores
        return Shuffled()(groups, seed=seed, epoch=epoch)

    @property
    def difficulty(self) -> Difficulty:
        return self.by

    @property
    def name(self) -> str:
        words = [f"{self.kind} by {self.by.name}", "hardest first" if self.hardest_first else "easiest first"]
        words += self.settings()
        words += ["within abilities"] if self.within_abilities else []
        words += [] if self.epochs is None else [f"shuffled after epoch {self.epochs}"]
        return ", ".join(words)

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return type(self).__name__.lower()

    def settings(self) -> list[str]:
        """Words for the settings of its own."""
        return []


@dataclass(frozen=True, kw_only=True)
class Sorted(Curriculum):
    """Strictly by difficulty: easy to hard, or `hardest_first`.

    Source: Bengio et al. 2009, "Curriculum learning", taken to its end: each step a little harder.
    """

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        del scores, seed, epoch
        return list(ranked)


@dataclass(frozen=True, kw_only=True)
class Staged(Curriculum):
    """Stage after stage of rising difficulty (falling with `hardest_first`), in drawn order inside a stage.

    `stages` of equal size, or without it one for each difficulty there is, such as a level. Equal difficulties at the
    edge of a stage of equal size fall on either side by a seeded hash. Inside a stage records are shuffled, or its
    abilities interleaved evenly. `within_abilities` cuts each ability into stages by itself, so that every stage holds
    of each ability its own easy, middling or hard records.

    `replay` is the share of each later stage that is records of earlier stages once more, drawn anew for each stage,
    none twice in a stage unless there are too few. An epoch is then no permutation: it holds every record at least
    once, and is longer by its replays. Epochs after `epochs` shuffle as many records, the same ones repeated.

    Source: Bengio et al. 2009, its experiments on shapes (two stages, the earlier not seen again); the replay of
    Rolnick et al. 2019, "Experience replay for continual learning", with a fixed share.
    """

    stages: int | None = None
    replay: float = 0.0
    inside: Literal["shuffled", "interleaved"] = "shuffled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None and self.stages < 1:
            raise UserError(f"stages={self.stages}; give 1 or more, or None for one for each difficulty there is")
        if not 0 <= self.replay < 1:
            raise UserError(
                f"replay={self.replay}; give the share of a later stage that is repeated, from 0 to below 1"
            )

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        return self._through(self.cut(ranked, scores), seed=seed, epoch=epoch)

    def separately(
        self, ranked: Mapping[str, Sequence[Planned]], scores: Scores, *, seed: int, epoch: int
    ) -> list[Planned]:
        if self.stages is None:  # a difficulty is the same stage in every ability
            records = [one for own in ranked.values() for one in own]
            return self.together(self.ranked(records, scores, seed=seed, epoch=epoch), scores, seed=seed, epoch=epoch)
        cut = [self.cut(records, scores) for records in ranked.values()]
        return self._through(
            [[one for own in cut for one in own[k]] for k in range(self.stages)], seed=seed, epoch=epoch
        )

    def afterwards(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None
    ) -> list[Planned]:
        if not self.replay:
            return super().afterwards(groups, seed=seed, epoch=epoch, scores=scores)
        assert self.epochs is not None, "only an order that ends has epochs afterwards"
        last = self(groups, seed=seed, epoch=self.epochs - 1, scores=scores)
        drawn = stream(seed, "staged afterwards", epoch).permutation(len(last)).tolist()
        return [last[place] for place in drawn]

    def cut(self, ranked: Sequence[Planned], scores: Scores) -> list[list[Planned]]:
        """The stages, easiest (or hardest) first; stage k of n holds places k N / n up to (k + 1) N / n."""
        if self.stages is not None:
            edges = [k * len(ranked) // self.stages for k in range(self.stages + 1)]
            return [list(ranked[start:stop]) for start, stop in itertools.pairwise(edges)]
        stages: dict[float, list[Planned]] = {}
        for one in ranked:
            stages.setdefault(scores[document_key(one)], []).append(one)
        if len(stages) > _MOST_STAGES:
            raise UserError(
                f"{self.name!r} would have {len(stages):,} stages, one for each difficulty of {len(ranked):,} records; "
                f"give Staged(stages=4) or another number for stages of equal size (at most {_MOST_STAGES} without)"
            )
        return list(stages.values())

    def _through(self, stages: Sequence[Sequence[Planned]], *, seed: int, epoch: int) -> list[Planned]:
        placed: list[Planned] = []
        earlier: list[Planned] = []
        for number, stage in enumerate(stages):
            again = self._replayed(earlier, len(stage), seed=seed, epoch=epoch, stage=number)
            placed += self._inside([*stage, *again], seed=seed, epoch=epoch, stage=number)
            earlier += stage
        return placed

    def _replayed(self, earlier: Sequence[Planned], num: int, *, seed: int, epoch: int, stage: int) -> list[Planned]:
        """So many earlier records that they are `replay` of the stage with its `num` own."""
        if not earlier or not self.replay:
            return []
        count = round(self.replay / (1 - self.replay) * num)
        drawn = sorted(earlier, key=lambda one: (name_hash("replayed", seed, epoch, stage, *one), one))
        return [drawn[place % len(drawn)] for place in range(count)]

    def _inside(self, records: Sequence[Planned], *, seed: int, epoch: int, stage: int) -> list[Planned]:
        seen: dict[Planned, int] = {}
        keyed = []
        for one in records:  # one that is repeated inside the stage has a place of its own each time
            seen[one] = seen.get(one, 0) + 1
            keyed.append((name_hash("staged", seed, epoch, stage, seen[one], *one), one))
        shuffled = [one for _, one in sorted(keyed)]
        if self.inside == "shuffled":
            return shuffled
        within: dict[str, list[str]] = {}
        for ability, id in shuffled:
            within.setdefault(ability, []).append(id)
        return spread(within, seed=name_hash("stage", seed, stage), epoch=epoch)

    @property
    def kind(self) -> str:
        return "staged" if self.stages is None else f"{self.stages} stages"

    def settings(self) -> list[str]:
        words = [] if self.inside == "shuffled" else ["interleaved inside"]
        return words + ([f"{100 * self.replay:g}% replayed"] if self.replay else [])


@dataclass(frozen=True, kw_only=True)
class Paced(Curriculum):
    """Drawn from a pool that opens from the easiest on, every record exactly once an epoch.

    Place t of N draws a record that was not yet drawn, each as likely, from the max(ceil(c(t / N) N), t + 1) easiest
    (hardest with `hardest_first`), where c is the pacing: the faster it opens the softer the order; at start=1 it is a
    shuffle.

    Source: the pool and the pacing of Platanios et al. 2019; drawing without repeats is ours, so that an
    epoch reads the same records as any other order does. `Competence` draws as the paper does.
    """

    pacing: Pacing = Root(start=0.1)

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        del scores
        total = len(ranked)
        draws = stream(seed, "paced", epoch).random(total).tolist()
        pool: list[Planned] = []
        placed: list[Planned] = []
        opened = 0
        for place, draw in enumerate(draws):
            open_now = open_records(self.pacing, place, total)
            pool += ranked[opened : max(opened, open_now, place + 1)]
            opened = max(opened, open_now, place + 1)
            chosen = int(draw * len(pool))
            pool[chosen], pool[-1] = pool[-1], pool[chosen]
            placed.append(pool.pop())
        return placed

    def settings(self) -> list[str]:
        return [self.pacing.name]


@dataclass(frozen=True, kw_only=True)
class Competence(Curriculum):
    """The paper's own: each place draws from all records that are open, those drawn before among them.

    Over the first `epochs` epochs (its T, here counted in places: N for each epoch) place t draws from the
    ceil(c(t / T) N) easiest, each as likely. So easy records come often, and of the hard ones some never: an epoch is
    no permutation. Tables show how many records it does not hold. Afterwards every record comes once an epoch.

    Source: Platanios et al. 2019, their algorithm; there a draw is of a batch, and after T batches are drawn from all
    records with repeats.
    """

    epochs: int | None = 1
    pacing: Pacing = Root()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None:
            raise UserError("Competence(epochs=None); give the epochs over which the pool opens, 1 or more")

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        del scores
        total = len(ranked)
        draws = stream(seed, "competence", epoch).random(total).tolist()
        assert self.epochs is not None
        return [
            ranked[int(draw * open_records(self.pacing, epoch * total + place, total, places=self.epochs * total))]
            for place, draw in enumerate(draws)
        ]

    def settings(self) -> list[str]:
        return [self.pacing.name, "with repeats"]


def open_records(pacing: Pacing, place: int, total: int, *, places: int | None = None) -> int:
    """How many of `total` records are open at a place of so many (as many as records where it is not said)."""
    # Shares such as 0.1 of 50 are 5.000000000000001 in floating point; a record is not opened for that.
    return min(total, max(1, math.ceil(pacing(place / (places or total)) * total - 1e-9)))


@dataclass(frozen=True, kw_only=True)
class BlockedBy(Curriculum):
    """Ability after ability, the one with the easiest records on average first; shuffled within each, or sorted.

    Nothing but the order of the abilities follows from difficulty where `inside` is "shuffled".
    """

    inside: Literal["shuffled", "sorted"] = "shuffled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within_abilities:
            raise UserError(
                "BlockedBy puts one ability after another, so within_abilities=True says nothing; leave it out"
            )

    def together(self, ranked: Sequence[Planned], scores: Scores, *, seed: int, epoch: int) -> list[Planned]:
        blocks: dict[str, list[Planned]] = {}
        for one in ranked:
            blocks.setdefault(one[0], []).append(one)
        sign = -1 if self.hardest_first else 1

        def mean(name: str) -> float:
            # fsum: the mean must not depend on the order of the records.
            return math.fsum(scores[document_key(one)] for one in blocks[name]) / len(blocks[name])

        names = sorted(blocks, key=lambda name: (sign * mean(name), name_hash("blocks", seed, epoch, name), name))
        if self.inside == "sorted":
            return [one for name in names for one in blocks[name]]
        shuffled = Blocked(first=tuple(names))
        return shuffled({name: [id for _, id in blocks[name]] for name in names}, seed=seed, epoch=epoch)

    @property
    def kind(self) -> str:
        return "blocked"

    def settings(self) -> list[str]:
        return [] if self.inside == "shuffled" else ["sorted inside"]


def repeats(order: Order) -> bool:
    """Whether an epoch of the order may hold a record more than once."""
    return isinstance(order, Competence) or (isinstance(order, Staged) and order.replay > 0)


def curricula(by: Difficulty) -> tuple[Curriculum, ...]:
    """One of each kind, by this difficulty."""
    return (
        Sorted(by=by),
        Sorted(by=by, hardest_first=True, within_abilities=True),
        Staged(by=by, stages=4),
        Staged(by=by, stages=3, within_abilities=True, inside="interleaved"),
        Staged(by=by, stages=4, replay=0.2),
        Paced(by=by),
        Paced(by=by, within_abilities=True, hardest_first=True),
        Competence(by=by, epochs=2),
        BlockedBy(by=by),
        BlockedBy(by=by, inside="sorted", hardest_first=True),
    )


FAMILY: tuple[Order, ...] = (*ORDERS, *curricula(Length()))
