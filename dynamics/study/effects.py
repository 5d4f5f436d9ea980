"""Does it matter? Runs that differ in one choice alone (the order of data, the objective, ...), set side by side.

Cells that are alike but for that choice form a *setting*; in each, every seed tries every choice on the same slice,
base model and test items: a block. Three things are told for each ability and the means:

    difference   of each choice from the reference choice, with an interval, items and seeds drawn on both sides alike
    p            the chance of means as far apart if the choice did nothing: its labels are then exchangeable inside a
                 block, so they are shuffled there and the spread of the means compared (a permutation test of a
                 randomised block design; exact where all shufflings are counted). Over the abilities together at most
                 5 % of those called clear are wrong (Benjamini and Hochberg 1995)
    detectable   the difference between two choices that so many seeds would show four times out of five, from what
                 remains in a block when choice and seed are taken out

A study that finds nothing therefore says how large a thing it could have missed. One seed has nothing to compare a
difference with: only intervals over items are given.

Source of the test: Fisher 1935, The Design of Experiments, chapter 3; Welch 1990 for its exactness.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from dynamics.seeds import stream
from dynamics.study.gather import HUMAN, volume_of
from dynamics.study.pairs import chances, paired_scores, side_by_side
from dynamics.study.points import ROUNDING, Bootstrap, Interval, interval, seed_points, with_means
from dynamics.study.transfer import discoveries

Result = Mapping[str, Any]

AXES = {"order": "order", "objective": "objective", "after": "first stage", "source": "source"}
_REFERENCE = ("shuffled", "interleaved")  # the order that others are compared with, where it is there
_MOST_EXACT = 20_000  # shufflings; where there are more, so many are drawn
_POWER = 0.8
NEAR = 0.05  # volumes of two sources that differ by less are one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """One ability, or a mean over several, in one setting."""

    p: float | None  # None: one seed, or no choice differs from another
    clear: bool  # after testing all abilities of the setting at once; a mean is tested by itself
    detectable: float | None  # score points in [0, 1]
    spread: float  # best choice minus worst


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """One axis in one setting."""

    axis: str  # a key of AXES
    bootstrap: Bootstrap
    setting: str  # "0.6m, 512 records per ability"
    choices: tuple[str, ...]  # the reference first
    seeds: tuple[int, ...]  # those that tried every choice
    left_out: int  # cells of seeds that did not
    exact: bool  # every shuffling was counted
    chance: dict[str, float]
    scores: dict[str, tuple[Interval, ...]]  # by ability, in the order of `choices`
    differences: dict[str, tuple[Interval, ...]]  # from the reference; the first is nothing
    tests: dict[str, Test]
    loss_tests: dict[str, Test]  # of the loss on the reference answers, in nats per token

    @property
    def reference(self) -> str:
        return self.choices[0]


def effects(results: Sequence[Result], *, bootstrap: Bootstrap | None = None) -> list[Effect]:
    """Every axis of AXES in every setting in which some seed tried two choices or more. Sources are left to
    `contrast.py` where one of them is the human one."""
    bootstrap = bootstrap or Bootstrap()
    tuned = [r for r in results if r["coords"].get("params") is not None and r["coords"]["volume"] != 0 and r["test"]]
    found = []
    for axis in AXES:
        if axis == "source" and any(r["coords"].get("source") == HUMAN for r in tuned):
            continue
        for setting, cells in _settings(tuned, axis).items():
            effect = _effect(axis, setting, cells, bootstrap)
            if effect is not None:
                found.append(effect)
    return found


def _settings(tuned: Sequence[Result], axis: str) -> dict[str, list[Result]]:
    """{words: cells} of cells that differ in the axis and in the seed alone."""
    apart = (axis, "seed", "params", "records")
    names = sorted({key for r in tuned for key in r["coords"]} - {*apart, "size", "volume"})
    varying = [key for key in names if len({json.dumps(r["coords"].get(key)) for r in tuned}) > 1]
    groups: dict[tuple[str, tuple[str, ...]], list[Result]] = {}
    for result in tuned:
        coords = result["coords"]
        told = tuple(f"{coords[key]}" for key in varying if coords.get(key) is not None)
        groups.setdefault((str(coords["size"]), told), []).append(result)
    found: dict[str, list[Result]] = {}
    for (size, told), cells in groups.items():
        for volume, alike in _by_volume(cells, near=axis == "source"):
            found[", ".join([size, f"{volume} records per ability", *told])] = alike
    return {words: cells for words, cells in found.items() if len({_choice(r, axis) for r in cells}) > 1}


def _by_volume(cells: Sequence[Result], *, near: bool) -> list[tuple[str, list[Result]]]:
    """(volume in words, its cells). `near`: sources may hold a few records more or less of the same data, so volumes
    within 5 % of the smallest stand together."""
    groups: list[list[Result]] = []
    for result in sorted(cells, key=volume_of):
        first = volume_of(groups[-1][0]) if groups else 0
        if groups and volume_of(result) <= first * (1 + NEAR if near else 1):
            groups[-1].append(result)
        else:
            groups.append([result])
    ends = [(volume_of(group[0]), volume_of(group[-1])) for group in groups]
    return [
        (f"{low:,}" if low == high else f"{low:,} to {high:,}", group)
        for (low, high), group in zip(ends, groups, strict=True)
    ]


def _choice(result: Result, axis: str) -> str:
    value = result["coords"].get(axis)
    return "plain" if value is None else str(value)


def _effect(axis: str, setting: str, cells: Sequence[Result], bootstrap: Bootstrap) -> Effect | None:
    choices = _ranked(list(dict.fromkeys(_choice(result, axis) for result in cells)))
    tried: dict[int, set[str]] = {}
    for result in cells:
        tried.setdefault(result["coords"]["seed"], set()).add(_choice(result, axis))
    seeds = tuple(sorted(seed for seed, each in tried.items() if each == set(choices)))
    whole = [result for result in cells if result["coords"]["seed"] in seeds]
    if not whole:
        return None
    places = {(0, column): [r for r in whole if _choice(r, axis) == name] for column, name in enumerate(choices)}
    items = side_by_side(places, (1, len(choices)))
    draws = {name: each[:, 0] for name, each in paired_scores(items, bootstrap).items()}
    scores = with_means({name: seed_points(each, of="score")[:, 0] for name, each in items.items()})
    losses = with_means({name: seed_points(each, of="loss")[:, 0] for name, each in items.items()})
    shufflings, exact = _shufflings(len(seeds), len(choices), bootstrap.seed)
    single = set(items)
    return Effect(
        axis=axis,
        bootstrap=bootstrap,
        setting=setting,
        choices=tuple(choices),
        seeds=seeds,
        left_out=len(cells) - len(whole),
        exact=exact,
        chance=chances(items),
        scores={a: tuple(interval(d[:, i], level=bootstrap.level) for i in _columns(d)) for a, d in draws.items()},
        differences={
            a: tuple(interval(d[:, i] - d[:, 0], level=bootstrap.level) for i in _columns(d)) for a, d in draws.items()
        },
        tests=_tests(scores, shufflings, single),
        loss_tests=_tests(losses, shufflings, single),
    )


def _columns(draws: np.ndarray) -> range:
    return range(draws.shape[1])


def _ranked(choices: list[str]) -> list[str]:
    """The reference choice first, the others as they came."""
    first = next((name for name in _REFERENCE if name in choices), choices[0])
    return [first, *(name for name in choices if name != first)]


def _shufflings(num_seeds: int, num_choices: int, seed: int) -> tuple[np.ndarray, bool]:
    """Orders of the choices inside each block, int [shufflings, seeds, choices], as they are first; whether all are
    there. A shuffling of all blocks alike changes no spread, so the first block stays as it is."""
    if num_seeds < 2:
        return np.arange(num_choices)[None, None], True
    each = math.factorial(num_choices)
    if each ** (num_seeds - 1) <= _MOST_EXACT:
        orders = np.array(list(itertools.permutations(range(num_choices))))
        others = itertools.product(range(each), repeat=num_seeds - 1)
        return np.array([orders[[0, *rest]] for rest in others]), True
    draw = stream(seed, "permutation", num_seeds, num_choices)
    drawn = np.argsort(draw.random((_MOST_EXACT, num_seeds, num_choices)), axis=-1)
    return np.concatenate([np.broadcast_to(np.arange(num_choices), (1, num_seeds, num_choices)), drawn]), False


def _tests(values: Mapping[str, np.ndarray], shufflings: np.ndarray, single: set[str]) -> dict[str, Test]:
    found = {name: _test(each, shufflings) for name, each in values.items()}
    tested = [name for name in found if name in single and found[name].p is not None]
    clear = dict(zip(tested, discoveries([found[name].p or 0.0 for name in tested]), strict=True))
    for name, test in found.items():
        kept = clear.get(name, False) if name in single else test.p is not None and test.p <= 0.05
        found[name] = dataclasses.replace(test, clear=kept)
    return found


def _test(values: Float[np.ndarray, "seeds choices"], shufflings: np.ndarray) -> Test:
    """The permutation test of one ability, and what the study could have seen."""
    num_seeds, num_choices = values.shape
    means = values.mean(axis=0)
    spread = float(means.max() - means.min()) if np.isfinite(values).all() else float("nan")
    if num_seeds < 2 or not np.isfinite(values).all() or np.ptp(values, axis=1).max() < ROUNDING:
        return Test(p=None, clear=False, detectable=None, spread=spread)
    shuffled = np.take_along_axis(np.broadcast_to(values, shufflings.shape), shufflings, axis=-1).mean(axis=1)
    statistic = shuffled.var(axis=-1)
    # Ties of the observed value differ from it by rounding alone; they count as far out as it is.
    p = float(np.mean(statistic >= statistic[0] * (1 - 1e-9)))
    residual = values - values.mean(axis=1, keepdims=True) - means + values.mean()
    freedom = (num_seeds - 1) * (num_choices - 1)
    deviation = math.sqrt(float((residual**2).sum()) / freedom)
    reach = float(student.ppf(0.975, freedom) + student.ppf(_POWER, freedom))
    return Test(p=p, clear=False, detectable=reach * deviation * math.sqrt(2 / num_seeds), spread=spread)


def rows_of(found: Sequence[Effect]) -> list[dict[str, Any]]:
    """One row per axis, setting, choice and ability."""
    return list(_rows(found))


def _rows(found: Sequence[Effect]) -> Iterator[dict[str, Any]]:
    for effect in found:
        for ability, scores in effect.scores.items():
            test, loss = effect.tests[ability], effect.loss_tests[ability]
            for choice, score, differs in zip(effect.choices, scores, effect.differences[ability], strict=True):
                yield {
                    "axis": effect.axis, "setting": effect.setting, "choice": choice, "reference": effect.reference,
                    "ability": ability, "seeds": len(effect.seeds), "chance": effect.chance[ability],
                    "score": score.value, "score_low": score.low, "score_high": score.high,
                    "difference": differs.value, "difference_low": differs.low, "difference_high": differs.high,
                    "p": test.p, "clear": test.clear, "detectable": test.detectable, "p_of_loss": loss.p,
                    "loss_clear": loss.clear,
                }  # fmt: skip
