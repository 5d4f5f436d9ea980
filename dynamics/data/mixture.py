"""Which records a run trains on, and in which order: nested slices per ability, exact quotas, seeded orders.

A slice depends on the ids of its own ability and on a seed, never on the order of lines, the names of files or the
other abilities. So the slice of 4 holds the slice of 1, and adding an ability changes no other slice. The published
code of DoIT drew disjoint samples in directory order from one random stream, which has none of these properties.

Everything here works on ids (content hashes): equal contents are one record, counted once, and the repeats reported.
"""

import dataclasses
import difflib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynamics.config import check_fields
from dynamics.data.difficulty import Difficulty
from dynamics.errors import UserError
from dynamics.seeds import name_hash, stream

Planned = tuple[str, str]  # (ability, id)
Scores = Mapping[str, float]  # document key -> difficulty, larger is harder


def document_key(planned: Planned) -> str:
    """The key of a planned record in a token store: 'math/0f3c...'."""
    ability, id = planned
    return f"{ability}/{id}"


def slice_ids(ids: Sequence[str], volume: int | None, *, seed: int, ability: str) -> list[str]:
    """The first `volume` distinct ids by the hash of (seed, ability, id); all of them when `volume` is None.

    Nested: a larger volume only appends. The order of `ids` and repeats in it change nothing.

    >>> slice_ids(["a", "b"], 1, seed=0, ability="math") == slice_ids(["b", "a", "b"], 1, seed=0, ability="math")
    True
    """
    distinct = set(ids)
    volume = _checked_volume(volume, len(distinct), repeats=len(ids) - len(distinct), ability=ability)
    return by_hash(distinct, "slice", seed, ability)[:volume]


def head_ids(ids: Sequence[str], volume: int | None, *, ability: str) -> list[str]:
    """The first `volume` distinct ids in the order of the source; all of them when `volume` is None.

    Nested too, but it depends on the order of lines: for mixtures that were published so.

    >>> head_ids(["b", "a", "b", "c"], 2, ability="math")
    ['b', 'a']
    """
    distinct = list(dict.fromkeys(ids))
    return distinct[: _checked_volume(volume, len(distinct), repeats=len(ids) - len(distinct), ability=ability)]


def _checked_volume(volume: int | None, available: int, *, repeats: int, ability: str) -> int:
    volume = available if volume is None else volume
    if volume < 0:
        raise UserError(f"ability {ability!r} has volume {volume}; a volume is a number of records, 0 or more")
    if volume > available:
        also = f" (and {repeats} repeats of the same content)" if repeats else ""
        raise UserError(
            f"volume {volume} of ability {ability!r} was asked for, but there are {available} records{also}; "
            "lower the volume or add records"
        )
    return volume


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The ids of each ability, in slice order, and how many repeats of a content were left out of the count."""

    groups: dict[str, list[str]]
    repeats: dict[str, int]

    @property
    def num_records(self) -> int:
        return sum(len(ids) for ids in self.groups.values())


@dataclass(frozen=True, kw_only=True)
class Order:
    """A family: the order of one epoch. Depends on the set of records (and their scores) only.

    Every record comes exactly once, but for the members of `curriculum.py` that say otherwise. `scores` holds the
    difficulty of each record by document key; an order without a `difficulty` needs none and looks at none.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None = None
    ) -> list[Planned]:
        raise NotImplementedError

    @property
    def difficulty(self) -> Difficulty | None:
        """What the records are ordered by; None where that is chance and the abilities alone."""
        return None

    @property
    def name(self) -> str:
        """'interleaved', or 'blocked first=math,code' when settings differ from the class's own; told in reports."""
        changed = [
            f"{field.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return " ".join([type(self).__name__.lower(), *changed])


@dataclass(frozen=True, kw_only=True)
class Shuffled(Order):
    """One shuffle over all abilities. Leaving an ability out leaves the order of the others as it was."""

    def __call__(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None = None
    ) -> list[Planned]:
        check_groups(groups)
        pairs = ((ability, id) for ability, ids in groups.items() for id in ids)
        return sorted(pairs, key=lambda pair: (name_hash("shuffled", seed, epoch, *pair), pair))


@dataclass(frozen=True, kw_only=True)
class Interleaved(Order):
    """Each ability spread evenly: after any m of N records, an ability of n has given m n / N of them, within one.

    The k-th record of an ability (from 0) may come from place floor(k N / n) on and is due by place
    ceil((k + 1) N / n); the record that is due first goes first, which always meets all of these bounds. Who goes first
    among equals, and the order within an ability, are drawn anew each epoch.

    Source: Baruah et al. 1996, "Proportionate progress", for one processor.
    """

    def __call__(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None = None
    ) -> list[Planned]:
        check_groups(groups)
        within = {ability: by_hash(ids, "interleaved", seed, epoch, ability) for ability, ids in groups.items()}
        return spread(within, seed=seed, epoch=epoch)


def spread(within: Mapping[str, Sequence[str]], *, seed: int, epoch: int) -> list[Planned]:
    """Each ability spread evenly over the whole, its ids in the order given; see `Interleaved`."""
    total = sum(len(ids) for ids in within.values())
    released: list[list[tuple[int, float, str, str]]] = [[] for _ in range(total)]
    for ability, ids in within.items():
        num = len(ids)
        ties = stream(seed, "interleaved", ability, epoch).random(num).tolist()
        for k, id in enumerate(ids):
            due = -(-(k + 1) * total // num)
            released[k * total // num].append((due, ties[k], ability, id))
    waiting: list[tuple[int, float, str, str]] = []
    placed: list[Planned] = []
    for place in range(total):
        for job in released[place]:
            heapq.heappush(waiting, job)
        due, _, ability, id = heapq.heappop(waiting)
        assert place < due, "an ability fell behind its quota"
        placed.append((ability, id))
    return placed


@dataclass(frozen=True, kw_only=True)
class Blocked(Order):
    """Ability after ability: those named in `first` in that order, then the others by name; shuffled within each."""

    first: tuple[str, ...] = ()

    def __call__(
        self, groups: Mapping[str, Sequence[str]], *, seed: int, epoch: int, scores: Scores | None = None
    ) -> list[Planned]:
        check_groups(groups)
        unknown = [ability for ability in self.first if ability not in groups]
        if unknown or len(set(self.first)) < len(self.first):
            raise UserError(
                f"Blocked(first={self.first}) must name abilities of this mixture, each once; "
                f"it has {', '.join(sorted(groups))}"
            )
        names = [*self.first, *sorted(set(groups) - set(self.first))]
        return [(name, id) for name in names for id in by_hash(groups[name], "blocked", seed, epoch, name)]


ORDERS: tuple[Order, ...] = (Interleaved(), Shuffled(), Blocked())


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Volumes per ability and an order. `slice_seed` chooses the records, `order_seed` the order they come in.

    The abilities in `heads` give their first records in the order of the source, whatever the seed.
    """

    volumes: tuple[tuple[str, int | None], ...]  # (ability, records); None: all there are
    order: Order = Interleaved()
    slice_seed: int = 0
    order_seed: int = 0
    heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [ability for ability, _ in self.volumes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"the mixture names {', '.join(twice)} twice; give each ability one volume")
        unknown = [ability for ability in self.heads if ability not in names]
        if unknown:
            raise UserError(
                f"heads name {', '.join(unknown)}, which the mixture has no volume of; it has {', '.join(names)}"
            )

    def slices(self, pool: Mapping[str, Sequence[str]]) -> Slices:
        """The slice of each ability out of `pool`, {ability: ids of all its records}."""
        groups, repeats = {}, {}
        for ability, volume in self.volumes:
            if ability not in pool:
                near = difflib.get_close_matches(ability, pool, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UserError(
                    f"the mixture names {ability!r}, of which there are no records; {hint}"
                    f"there are {', '.join(sorted(pool)) or 'no abilities'}"
                )
            groups[ability] = (
                head_ids(pool[ability], volume, ability=ability)
                if ability in self.heads
                else slice_ids(pool[ability], volume, seed=self.slice_seed, ability=ability)
            )
            repeats[ability] = len(pool[ability]) - len(set(pool[ability]))
        return Slices(groups=groups, repeats=repeats)

    def planned(self, slices: Slices, *, num_epochs: int, scores: Scores | None = None) -> list[list[Planned]]:
        """The order of each epoch: every record once in each (unless the order repeats), in an order of its own."""
        return [
            self.order(slices.groups, seed=self.order_seed, epoch=epoch, scores=scores) for epoch in range(num_epochs)
        ]


def quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` records split in proportion to the shares, to the last record (largest remainder, then by name).

    >>> quotas({"code": 1, "math": 2}, 10)
    {'code': 3, 'math': 7}
    """
    if total < 0 or not shares or min(shares.values()) < 0 or not sum(shares.values()):
        raise UserError(
            f"{total} records cannot be split by the shares {dict(shares)}; shares are 0 or more, not all 0"
        )
    names = sorted(shares)
    exact = np.array([shares[name] for name in names], dtype=np.float64)
    exact *= total / exact.sum()
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return dict(zip(names, counts.tolist(), strict=True))


def by_hash(ids: set[str] | Sequence[str], *names: str | int) -> list[str]:
    """The ids by a hash of (names, id): a seeded shuffle in which leaving one out moves no other."""
    return sorted(ids, key=lambda id: (name_hash(*names, id), id))


def check_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """UserError where an id stands twice in an ability."""
    for ability, ids in groups.items():
        if len(set(ids)) < len(ids):
            raise UserError(
                f"{len(ids) - len(set(ids))} ids of ability {ability!r} come twice, so an epoch would repeat them; "
                "take the groups from slice_ids or Mixture.slices, which count equal contents once"
            )
