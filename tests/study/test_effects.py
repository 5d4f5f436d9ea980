"""Does an order matter: a true effect is found, nothing is called nothing with what could have been seen."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dynamics.study import mixtures, report
from dynamics.study.curves import OVERALL, Bootstrap
from dynamics.study.effect_words import effect_findings
from dynamics.study.effects import _shufflings, _test, effects, rows_of

from .synthetic_results import TRUTH, Truth, make_results

FEW = Bootstrap(draws=200)
ORDERS = ("interleaved", "shuffled", "sorted by length", "staged")


def shifted(points: float) -> Truth:
    def moved(mean):
        return lambda params, volume: min(0.97, max(0.02, mean(params, volume) + (points if volume else 0.0)))

    return {name: (chance, moved(mean)) for name, (chance, mean) in TRUTH.items()}


def study(gains: dict[str, float], seeds=(0, 1, 2)) -> list[dict]:
    """One size, one volume, the model before tuning, and each order with its gain in every ability."""
    cells = []
    for number, (order, gain) in enumerate(gains.items()):
        made = make_results(
            sizes=("0.2m",), volumes=(0, 256), seeds=seeds, order=order, truth=shifted(gain), seed=number
        )
        cells += [cell for cell in made if cell["coords"]["volume"] or not number]
    return cells


@pytest.fixture(scope="module")
def found():
    return effects(study(dict(zip(ORDERS, (0.0, 0.0, 0.12, 0.0), strict=True))), bootstrap=FEW)


def test_a_true_effect_is_found_and_its_size_told_against_the_random_order(found):
    (effect,) = found
    assert effect.axis == "order"
    assert effect.choices == ("shuffled", "interleaved", "sorted by length", "staged")
    assert effect.seeds == (0, 1, 2)
    assert effect.exact
    assert effect.tests[OVERALL].clear
    difference = effect.differences[OVERALL][2]
    assert difference.low < 0.11 < difference.high
    assert difference.positive
    assert not effect.differences[OVERALL][1].positive
    assert effect.differences[OVERALL][0].value == 0.0
    (answer,) = effect_findings(found)
    assert answer.question == "Does the order of the data matter?"
    assert answer.lines[0].startswith("It does for the mean over abilities: p")
    assert "Best is sorted by length" in answer.lines[0]


def test_nothing_is_called_nothing_with_what_would_have_been_seen():
    found = effects(study(dict.fromkeys(ORDERS, 0.0)), bootstrap=FEW)
    assert not found[0].tests[OVERALL].clear
    line = effect_findings(found)[0].lines[0]
    assert line.startswith("No effect on the mean over abilities is shown: p = ")
    assert f"a difference of {100 * found[0].tests[OVERALL].detectable:.1f} between two" in line


def test_one_seed_answers_nothing():
    found = effects(study(dict.fromkeys(ORDERS[:2], 0.0), seeds=(0,)), bootstrap=FEW)
    assert {test.p for test in found[0].tests.values()} == {None}
    assert effect_findings(found)[0].lines[0].startswith("Not answered: 2 choices (shuffled, interleaved) with 1 seed")


def test_many_choices_of_one_seed_cost_nothing():
    shufflings, exact = _shufflings(1, 12, seed=0)
    assert exact
    assert shufflings.shape == (1, 1, 12)


def test_equal_scores_are_told_as_such():
    cells = make_results(sizes=("0.2m",), volumes=(0, 256))
    cells += [
        {**cell, "cell": f"{cell['cell']}x", "coords": {**cell["coords"], "order": "shuffled"}}
        for cell in cells
        if cell["coords"]["volume"]
    ]
    line = effect_findings(effects(cells, bootstrap=FEW))[0].lines[0]
    assert line == "2 choices (shuffled, interleaved) score the same in every one of 3 seeds."


def test_sources_of_nearly_the_same_data_are_compared_and_others_are_not():
    cells = study({"interleaved": 0.0})
    others = [
        {**cell, "cell": f"{cell['cell']}{name}", "coords": {**cell["coords"], "source": name, "volume": volume}}
        for cell in cells
        if cell["coords"]["volume"]
        for name, volume in (("hard only", 255), ("half", 128))
    ]
    (effect,) = effects([*cells, *others], bootstrap=FEW)
    assert effect.choices == ("hard only", "practice")
    assert effect.setting == "0.2m, 255 to 256 records per ability"


def test_without_choices_there_is_no_question():
    assert effects(study({"interleaved": 0.0}), bootstrap=FEW) == []


def test_seeds_that_lack_a_choice_are_left_out_and_counted(found):
    cells = study(dict.fromkeys(ORDERS, 0.0))
    gone = next(c for c in cells if c["coords"]["order"] == "staged" and c["coords"]["seed"] == 1)
    (effect,) = effects([c for c in cells if c is not gone], bootstrap=FEW)
    assert effect.seeds == (0, 2)
    assert effect.left_out == 3
    assert any("3 cells are left out" in line for line in effect_findings([effect])[0].details)


def test_the_permutation_test_counts_every_shuffling_inside_seeds():
    values = np.random.default_rng(0).normal(size=(3, 3))
    orders = list(itertools.permutations(range(3)))
    spreads = [
        np.var([np.mean([values[s, o[s][c]] for s in range(3)]) for c in range(3)])
        for o in itertools.product(orders, repeat=3)
    ]
    expected = np.mean(np.array(spreads) >= np.var(values.mean(axis=0)) - 1e-12)
    shufflings, exact = _shufflings(3, 3, seed=0)
    assert exact
    assert len(shufflings) == 36
    assert _test(values, shufflings).p == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "choices"), [(3, 4), (5, 6)])
def test_without_an_effect_p_is_below_five_percent_about_that_often(seeds, choices):
    shufflings, exact = _shufflings(seeds, choices, seed=1)
    assert exact == (seeds == 3)
    draw = np.random.default_rng(2)
    # Seeds of their own level, and far from a normal law: a permutation test minds neither.
    worlds = draw.normal(size=(200, seeds, 1)) + draw.exponential(size=(200, seeds, choices))
    low = sum((_test(world, shufflings[:2000]).p or 0.0) <= 0.05 for world in worlds)
    assert 1 <= low <= 21  # binomial, 200 worlds: 99.9 %


def test_the_detectable_difference_is_that_of_a_paired_t_test():
    values = np.array([[0.5, 0.55], [0.6, 0.62], [0.4, 0.49]])
    deviation = (values[:, 1] - values[:, 0]).std(ddof=1) / np.sqrt(2)
    reach = stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)
    test = _test(values, _shufflings(3, 2, seed=0)[0])
    assert test.detectable == pytest.approx(reach * deviation * np.sqrt(2 / 3))
    assert test.spread == pytest.approx(0.16 / 3)


def test_equal_values_are_no_test():
    assert _test(np.full((3, 2), 0.5), _shufflings(3, 2, seed=0)[0]).p is None


def test_the_page_shows_orders_here_and_not_as_mixtures(tmp_path, found):
    cells = study(dict(zip(ORDERS, (0.0, 0.0, 0.12, 0.0), strict=True)))
    assert mixtures.mixtures(cells, bootstrap=FEW) is None
    page = report.write_report(cells, {"name": "orders"}, tmp_path, bootstrap=FEW).read_text(encoding="utf-8")
    assert "Does it matter: order" in page
    assert "1. Does the order of the data matter?" in page
    assert (tmp_path / "effects.csv").read_text().count("\n") == 1 + len(ORDERS) * 11
    assert len(rows_of(found)) == len(ORDERS) * 11
