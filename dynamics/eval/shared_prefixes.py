"""Which prompts are computed together because they begin with the same tokens.

The questions of a subject share a heading and worked examples. A group's common prefix is computed once, and what is
left of each prompt goes on from it. Where sharing saves less than a group costs, prompts stay whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Prompts whose first `prefix` tokens are the same, with at least one token of their own each; 0: no prefix."""

    prefix: int
    members: Int64[np.ndarray, " members"]  # places of the prompts


@dataclass(kw_only=True)
class _Interval:
    """A run of the sorted prompts that share `common` tokens, and the cheapest way found to compute them."""

    common: int
    start: int
    cost: int = 0
    groups: list[tuple[int, list[int]]] = field(default_factory=list)  # (prefix, places in the sorted order)
    alone: list[int] = field(default_factory=list)  # places that are in no group yet

    def add(self, other: "_Interval") -> None:
        self.cost += other.cost
        self.groups.extend(other.groups)
        self.alone.extend(other.alone)


def group_by_prefix(prompts: Sequence[Int32[np.ndarray, " _"]], *, overhead: int) -> list[Group]:
    """Groups with which few tokens are computed, a group with a prefix costing `overhead` tokens besides its own.

    Every prompt is in exactly one group. Prompts that share nothing worth it are one group without a prefix, the last.
    The tree of all common prefixes is walked once from its leaves; a group has one prefix, not a prefix of a prefix.
    """
    count = len(prompts)
    if count == 0:
        return []
    # Big-endian bytes sort like the ids themselves.
    order = np.asarray(sorted(range(count), key=lambda i: np.asarray(prompts[i]).astype(">u4").tobytes()), np.int64)
    lengths = np.asarray([len(prompts[i]) for i in order], np.int64)

    def shared(common: int, places: list[int]) -> tuple[int, int]:
        """(prefix, cost) of these prompts as one group."""
        own = lengths[places]
        prefix = min(common, int(own.min()) - 1)
        return prefix, overhead + prefix + int(own.sum()) - len(places) * prefix

    def closed(run: _Interval, stop: int) -> _Interval:
        """The run that ends here: in one group, or as found within it with those that were left alone in a group."""
        whole = list(range(run.start, stop))
        options = [run]
        if run.alone:
            prefix, cost = shared(run.common, run.alone)
            cost += run.cost - int(lengths[run.alone].sum())
            groups = [*run.groups, (prefix, run.alone)]
            options.append(_Interval(common=run.common, start=run.start, cost=cost, groups=groups))
        prefix, cost = shared(run.common, whole)
        options.append(_Interval(common=run.common, start=run.start, cost=cost, groups=[(prefix, whole)]))
        return min(options, key=lambda option: option.cost)

    # The tree of all common prefixes, from the left; only the runs that are still open are kept.
    stack = [_Interval(common=0, start=0)]
    for place in range(count):
        done = _Interval(common=int(lengths[place]), start=place, cost=int(lengths[place]), alone=[place])
        common = _common(prompts[order[place]], prompts[order[place + 1]]) if place + 1 < count else 0
        while stack[-1].common > common:
            run = stack.pop()
            run.add(done)
            done = closed(run, place + 1)
        if stack[-1].common < common:
            stack.append(_Interval(common=common, start=done.start))
        stack[-1].add(done)
    (root,) = stack
    groups = [Group(prefix=prefix, members=order[places]) for prefix, places in root.groups if prefix]
    apart = root.alone + [place for prefix, places in root.groups if not prefix for place in places]
    return [*groups, *([Group(prefix=0, members=order[apart])] if apart else [])]


def _common(one: Int32[np.ndarray, " a"], two: Int32[np.ndarray, " b"]) -> int:
    """How many tokens two prompts begin with in common."""
    length = min(len(one), len(two))
    different = np.flatnonzero(np.asarray(one[:length]) != np.asarray(two[:length]))
    return int(different[0]) if len(different) else length
