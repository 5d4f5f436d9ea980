"""From item results to the numbers that are reported: per ability, and over all of them.

The published scorer divides the sum of its scores by the length of a table that also holds every chance level, which
halves its "average"; here the mean over abilities is the mean over abilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamics.errors import UserError
from dynamics.eval.ability_eval import ItemResult


@dataclass(frozen=True, kw_only=True)
class AbilityScore:
    """The items of one ability: means of score and chance in [0, 1], loss in nats per token of the references.

    `standard_error` is that of the mean score over items, from their sample variance; None for a single item.
    `loss` is None when no item was asked. Too long items count with score 0.
    """

    ability: str
    num_items: int
    score: float
    chance: float
    standard_error: float | None
    loss: float | None
    num_tokens: int
    num_unparsed: int
    num_truncated: int
    num_too_long: int


@dataclass(frozen=True, kw_only=True)
class Overall:
    """Means over abilities, each counted once however many items it has, and the abilities themselves.

    `standard_error` takes the abilities as given and the items as drawn; None when some ability has a single item.
    """

    score: float
    chance: float
    standard_error: float | None
    loss: float | None
    abilities: dict[str, AbilityScore]


def aggregate(results: Sequence[ItemResult]) -> Overall:
    """Scores per ability, in the order in which abilities first appear, and their means.

    Raises UserError for no results.
    """
    if not results:
        raise UserError("there are no results to average; evaluate at least one record")
    groups: dict[str, list[ItemResult]] = {}
    for result in results:
        groups.setdefault(result.ability, []).append(result)
    abilities = {ability: _ability_score(ability, group) for ability, group in groups.items()}
    scores = list(abilities.values())
    errors = [one.standard_error for one in scores if one.standard_error is not None]
    losses = [one.loss for one in scores if one.loss is not None]
    return Overall(
        score=_mean([one.score for one in scores]),
        chance=_mean([one.chance for one in scores]),
        standard_error=math.hypot(*errors) / len(scores) if len(errors) == len(scores) else None,
        loss=_mean(losses) if losses else None,
        abilities=abilities,
    )


@dataclass(frozen=True, kw_only=True)
class PublishedScores:
    """The numbers as the published scorer writes them; see `published_average`."""

    scores: dict[str, float]
    expected: dict[str, float]
    average: float
    expected_average: float


def published_average(results: Sequence[ItemResult]) -> PublishedScores:
    """What the published scorer prints for these items, its halved average included.

    A score is the number of right items (percent where there are 100, as in DoIT's test), for C-Eval's parts, which
    have 40, times 100/40. "average" sums the scores and divides by the length of the table that holds each score and
    each chance level: half the mean of the thirteen, from 0 to 50. With Evaluation(rules="published") the chance levels
    are the published ones too (0.33 for three options). Raises UserError for no results.
    """
    if not results:
        raise UserError("there are no results to average; evaluate at least one record")
    scores: dict[str, float] = {}
    expected: dict[str, float] = {}
    for result in results:
        weight = 100 / 40 if result.ability.startswith("ceval_") else 1.0
        scores[result.ability] = scores.get(result.ability, 0.0) + weight * result.score
        expected[result.ability] = expected.get(result.ability, 0.0) + weight * result.chance
    entries = len(scores) + len(expected)
    return PublishedScores(
        scores=scores,
        expected=expected,
        average=math.fsum(scores.values()) / entries,
        expected_average=math.fsum(expected.values()) / entries,
    )


def _ability_score(ability: str, results: Sequence[ItemResult]) -> AbilityScore:
    scores = [result.score for result in results]
    num_tokens = sum(result.num_tokens for result in results)
    return AbilityScore(
        ability=ability,
        num_items=len(results),
        score=_mean(scores),
        chance=_mean([result.chance for result in results]),
        standard_error=float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        loss=math.fsum(result.loss_sum for result in results) / num_tokens if num_tokens else None,
        num_tokens=num_tokens,
        num_unparsed=sum(result.unparsed for result in results),
        num_truncated=sum(result.truncated for result in results),
        num_too_long=sum(result.too_long for result in results),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
