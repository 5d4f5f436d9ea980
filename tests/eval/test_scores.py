"""Averages against numbers computed by hand."""

import math

import pytest

from dynamics.errors import UserError
from dynamics.eval.ability_eval import ItemResult
from dynamics.eval.scores import aggregate, published_average


def result(ability, score, chance=0.25, loss_sum=2.0, num_tokens=4, **flags):
    return ItemResult(
        id="0", ability=ability, kind="choice", score=score, chance=chance, loss_sum=loss_sum, num_tokens=num_tokens,
        answer="A", **flags,
    )  # fmt: skip


def test_scores_match_hand_computed_numbers():
    results = [
        result("math", 1.0, chance=0.0, loss_sum=3.0, num_tokens=1),
        result("biology", 1.0),
        result("biology", 0.0, unparsed=True),
        result("math", 0.0, chance=0.0, loss_sum=1.0, num_tokens=3, truncated=True),
        result("biology", 1.0, chance=1 / 3),
        result("biology", 0.0, loss_sum=0.0, num_tokens=0, too_long=True),
    ]
    overall = aggregate(results)
    assert list(overall.abilities) == ["math", "biology"]
    math_score, biology = overall.abilities["math"], overall.abilities["biology"]
    assert (math_score.score, math_score.chance, math_score.num_items) == (0.5, 0.0, 2)
    assert math_score.loss == 1.0  # 4 nats over 4 tokens, not the mean of 3 and 1/3
    assert math_score.standard_error == pytest.approx(0.5)  # sqrt(0.5) / sqrt(2)
    assert (biology.score, biology.num_tokens, biology.loss) == (0.5, 12, 0.5)
    assert biology.chance == pytest.approx((3 * 0.25 + 1 / 3) / 4)
    assert biology.standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert (biology.num_unparsed, biology.num_truncated, biology.num_too_long) == (1, 0, 1)
    assert math_score.num_truncated == 1
    assert overall.chance == pytest.approx(biology.chance / 2)
    assert overall.loss == pytest.approx(0.75)
    assert overall.standard_error == pytest.approx(math.sqrt(0.25 + 1 / 12) / 2)


def test_the_overall_score_is_the_mean_and_not_half_of_it():
    perfect = [result(ability, 1.0) for ability in ("math", "code", "ethics")]
    assert aggregate(perfect).score == 1.0


def test_an_ability_counts_once_however_many_items_it_has():
    results = [result("math", 1.0)] * 9 + [result("code", 0.0)]
    assert aggregate(results).score == 0.5


def test_a_single_item_has_no_standard_error():
    overall = aggregate([result("math", 1.0)])
    assert overall.standard_error is None
    assert overall.abilities["math"].standard_error is None


def test_nothing_asked_has_no_loss():
    assert aggregate([result("math", 0.0, loss_sum=0.0, num_tokens=0, too_long=True)]).loss is None


def test_no_results_are_refused():
    with pytest.raises(UserError, match="no results to average; evaluate at least one record"):
        aggregate([])


def test_the_published_average_is_half_the_mean_and_counts_an_item_of_ceval_as_two_and_a_half():
    results = [result("math", float(i < 30), chance=0.0) for i in range(100)]
    results += [result("biology", float(i < 50), chance=0.25) for i in range(100)]
    results += [result("ceval_physician", float(i < 16), chance=0.25) for i in range(40)]
    published = published_average(results)
    assert published.scores == {"math": 30.0, "biology": 50.0, "ceval_physician": 40.0}
    assert published.expected == {"math": 0.0, "biology": 25.0, "ceval_physician": 25.0}
    assert published.average == pytest.approx((30 + 50 + 40) / 6)
    assert published.expected_average == pytest.approx(50 / 6)
    assert published.average == pytest.approx(100 * aggregate(results).score / 2)
    with pytest.raises(UserError, match="no results to average"):
        published_average([])
