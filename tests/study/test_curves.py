"""Growth curves against known truths: planted laws come back, intervals cover, flat is called flat."""

import time
import warnings

import numpy as np
import pytest

from dynamics.errors import UserError
from dynamics.study.curves import OVERALL, Bootstrap, analyze
from dynamics.study.fits import fit_log_linear, fit_power_law, solve_power
from dynamics.study.gather import read_grids
from dynamics.study.points import (
    Interval,
    interval,
    item_weights,
    mean_over_abilities,
    replicate,
    score_replicates,
    seed_weights,
)
from dynamics.study.sensitivity import sensitivities

from .synthetic_results import TRUTH, make_results

FEW = Bootstrap(draws=200)
LEVEL = 0.95


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def growth(results):
    return analyze(results)[0]


def with_noise(truth, *, sd, draws=400, seed=0):
    """Replicates around a curve: the first row is one noisy observation, the others are its bootstrap draws."""
    draw = np.random.default_rng(seed)
    observed = truth + draw.normal(0, sd, truth.shape)
    return np.concatenate([observed[None], observed + draw.normal(0, sd, (draws, *truth.shape))])


# ---------------------------------------------------------------- fits


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.5])
def test_a_planted_power_law_is_recovered_whatever_its_scale(exponent, scale):
    ratio = 4.0 ** np.arange(6)
    y = scale * (0.2 + 0.5 * ratio**-exponent)
    offset, gain, found = solve_power(y[None], ratio)
    np.testing.assert_allclose([offset[0], gain[0]], [0.2 * scale, 0.5 * scale], rtol=1e-4)
    np.testing.assert_allclose(found[0], exponent, rtol=1e-5)


def test_the_fit_is_the_best_of_a_dense_search():
    draw = np.random.default_rng(1)
    ratio = 4.0 ** np.arange(5)
    for _ in range(10):
        y = np.sort(draw.random(5))[::-1]
        offset, gain, exponent = (part[0] for part in solve_power(y[None], ratio))
        error = ((y - offset - gain * ratio**-exponent) ** 2).sum()
        grid = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1.2, 60), np.geomspace(0.02, 4, 60), indexing="ij")
        fits = grid[0][..., None] + grid[1][..., None] * ratio ** -grid[2][..., None]
        assert error <= ((fits - y) ** 2).sum(axis=-1).min() + 1e-12


def test_the_offset_never_leaves_what_an_error_can_be():
    ratio = 4.0 ** np.arange(5)
    line = 0.9 - 0.2 * np.arange(5.0)  # a line in log volume would go below zero
    offset, gain, exponent = solve_power(line[None], ratio)
    assert offset[0] >= 0
    assert gain[0] >= 0
    assert exponent[0] > 0


def test_planted_parameters_lie_within_their_intervals():
    volumes = 4.0 ** np.arange(1, 8)
    truth = 0.15 + 0.5 * (volumes / volumes[0]) ** -0.6
    hits = []
    for seed in range(40):
        law = fit_power_law(with_noise(truth, sd=0.01, seed=seed), volumes, level=LEVEL)
        planted = ((law.offset, 0.15), (law.gain, 0.5), (law.exponent, 0.6))
        hits += [item.low <= value <= item.high for item, value in planted]
    assert 0.88 <= np.mean(hits) <= 1.0


def test_a_flat_curve_is_called_flat_and_has_no_law():
    volumes = 4.0 ** np.arange(6)
    outcomes = [
        fit_power_law(with_noise(np.full(6, 0.6), sd=0.03, seed=s), volumes, level=LEVEL).status for s in range(40)
    ]
    assert outcomes.count("flat") >= 32
    law = fit_power_law(np.full((51, 6), 0.6), volumes, level=LEVEL)
    assert law.status == "flat"
    assert np.isnan(law.exponent.value)
    assert not law.drawn


def test_a_falling_score_is_called_worse():
    rising_error = with_noise(np.linspace(0.3, 0.6, 6), sd=0.01)
    assert fit_power_law(rising_error, 4.0 ** np.arange(6), level=LEVEL).status == "gets worse"


def test_three_numbers_are_not_fitted_to_three_volumes():
    law = fit_power_law(with_noise(np.array([0.9, 0.5, 0.3]), sd=0.01), np.array([4.0, 16, 64]), level=LEVEL)
    assert law.status == "too few volumes"


def test_a_law_that_does_not_fit_is_reported_and_not_drawn():
    late = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.1])  # nothing, nothing, then all: no power law
    law = fit_power_law(with_noise(late, sd=0.01), 4.0 ** np.arange(6), level=LEVEL)
    assert law.status == "poor fit"
    assert law.misfit < 0.05
    assert not law.drawn


def test_an_exponent_that_the_data_leave_open_is_said_to_be_undetermined():
    volumes = 4.0 ** np.arange(5)
    law = fit_power_law(with_noise(0.6 - 0.02 * np.arange(5), sd=0.012), volumes, level=LEVEL)
    assert law.status == "exponent undetermined"


def test_the_line_is_least_squares_over_log4():
    volumes = np.array([16.0, 64, 256])
    line = fit_log_linear(np.array([[0.2, 0.3, 0.4]] * 3), volumes, level=LEVEL)
    assert line is not None
    assert line.per_factor_4.value == pytest.approx(0.1)
    assert line.at_one.value == pytest.approx(0.0, abs=1e-12)  # 0.2 at log4(16) = 2


def test_a_line_that_does_not_fit_says_so():
    volumes = 4.0 ** np.arange(6)
    straight = fit_log_linear(with_noise(0.1 * np.arange(6.0), sd=0.01), volumes, level=LEVEL)
    bent = fit_log_linear(with_noise(0.9 * (1 - 4.0 ** -np.arange(6.0)), sd=0.01), volumes, level=LEVEL)
    assert straight is not None
    assert bent is not None
    assert bent.misfit < 0.05 < straight.misfit


# ---------------------------------------------------------------- bootstrap


@pytest.mark.parametrize(("item_spread", "seed_sd"), [(0.1, 0.02), (0.45, 0.02), (0.15, 0.08)])
def test_intervals_cover_the_truth_as_often_as_they_say(item_spread, seed_sd):
    """Whether noise of answers, items or seeds make most of the variance; levels and paired differences alike."""
    truth = {"math": (0.0, lambda p, v: 0.5 if v == 16 else 0.55)}
    settings = {"truth": truth, "sizes": ("0.2m",), "volumes": (16, 64), "seeds": range(4), "num_items": 60}
    covered = []
    for seed in range(100):
        made = make_results(**settings, seed=seed, item_spread=item_spread, seed_sd=seed_sd)
        draws = score_replicates(read_grids(made)[0], FEW)["math"][:, 0]
        level, change = (interval(rows, level=LEVEL) for rows in (draws[:, 0], draws[:, 1] - draws[:, 0]))
        covered.append([level.low <= 0.5 <= level.high, change.low <= 0.05 <= change.high])
    for share in np.mean(covered, axis=0):
        assert 0.88 <= share <= 0.99


def test_drawing_one_seed_fewer_keeps_the_variance_of_the_mean_unbiased():
    values = np.array([0.1, 0.4, 0.7, 0.2])
    weights = seed_weights(4, Bootstrap(draws=40_000))[1:]
    means = weights @ values / weights.sum(axis=1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 4, rel=0.03)


def test_the_first_replicate_is_the_plain_mean_and_draws_are_reproducible(results):
    grid = read_grids(results)[0]
    first, again = (score_replicates(grid, FEW)["code"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    plain = [
        r["test"]["code"]["scores"] for r in results if r["coords"]["size"] == "0.6m" and r["coords"]["volume"] == 64
    ]
    assert first[0, 1, 2] == pytest.approx(np.mean(plain))


def test_a_loss_weighs_every_token_once():
    losses, tokens = np.array([2.0, 9.0]), np.array([1.0, 9.0])
    shaped = [array.reshape(1, 1, 1, 2) for array in (losses, tokens)]
    draws = replicate(*shaped, seeds=np.ones((1, 1)), items=np.ones((1, 2)))
    assert draws[0, 0, 0] == pytest.approx(11 / 10)


def test_weights_of_items_are_shared_by_cells_and_differ_between_abilities():
    assert (item_weights(50, "math", FEW) == item_weights(50, "math", FEW)).all()
    assert (item_weights(50, "math", FEW) != item_weights(50, "code", FEW)).any()


def test_paired_differences_are_narrower_than_unpaired_ones(results):
    """Hard items are hard at both volumes; resampling them jointly must show in the difference."""
    draws = score_replicates(read_grids(results)[0], FEW)["ethics"][1:, 0]
    assert (draws[:, 3] - draws[:, 4]).var() < draws[:, 3].var() + draws[:, 4].var()


# ---------------------------------------------------------------- aggregation


def cell(volume, scores_by_ability, *, seed=0, size="s", params=100, **coords):
    test = {
        name: {
            "ids": [f"{name}{i}" for i in range(len(scores))],
            "scores": scores,
            "chance": [0.25] * len(scores),
            "loss_sums": [1.0] * len(scores),
            "num_tokens": [1] * len(scores),
            "unparsed": 0,
        }
        for name, scores in scores_by_ability.items()
    }
    place = {"size": size, "params": params, "volume": volume, "abilities": "all", "seed": seed, **coords}
    return {
        "cell": f"{size}-{volume}-{seed}-{coords}",
        "coords": place,
        "test": test,
        "valid": {},
        "run": {"counts": {}},
    }


def test_the_overall_mean_is_the_one_computed_by_hand():
    """math (1 + 0 + 0 + 1) / 4 = 0.5 over seeds 0.5 and 1.0 -> 0.75; code 0.25 and 0.25 -> 0.25; overall 0.5.

    The published scorer divides by twice the number of abilities and would say 0.25.
    """
    made = [
        cell(16, {"math": [1.0, 0, 0, 1], "code": [1.0, 0, 0, 0]}, seed=0),
        cell(16, {"math": [1.0, 1, 1, 1], "code": [0.0, 0, 0, 1]}, seed=1),
    ]
    curve = analyze(made, bootstrap=FEW)[0].scores[OVERALL, "s"]
    assert curve.mean[0] == pytest.approx(0.5)
    np.testing.assert_allclose(curve.points[:, 0], [0.375, 0.625])
    assert curve.chance == pytest.approx(0.25)


def test_an_ability_counts_once_however_many_items_it_has():
    made = [cell(16, {"math": [1.0] * 6, "code": [0.0, 0.0]})]
    assert analyze(made, bootstrap=FEW)[0].scores[OVERALL, "s"].mean[0] == pytest.approx(0.5)


def test_a_point_that_lacks_an_ability_has_no_overall_mean():
    whole, part = np.full((1, 1, 1), 0.3), np.full((1, 1, 1), np.nan)
    assert np.isnan(mean_over_abilities({"a": whole, "b": part})[0, 0, 0])


def test_missing_cells_change_no_other_point():
    results = make_results(truth={name: TRUTH[name] for name in ("math", "ethics")})
    lost = next(r["cell"] for r in results if r["coords"]["volume"] == 256 and r["coords"]["size"] == "0.6m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = analyze([r for r in results if r["cell"] != lost], bootstrap=FEW)[0]
    full = analyze(results, bootstrap=FEW)[0]
    for key, curve in full.scores.items():
        fewer = short.scores[key].num_seeds < curve.num_seeds
        assert fewer.tolist() == [key[1] == "0.6m" and volume == 256 for volume in curve.volumes]
        np.testing.assert_array_equal(short.scores[key].mean[~fewer], curve.mean[~fewer])


def test_the_order_of_results_does_not_matter():
    results = make_results(truth={name: TRUTH[name] for name in ("math", "ethics")})
    first, second = (analyze(made, bootstrap=FEW)[0] for made in (results, results[::-1]))
    for key, curve in first.scores.items():
        np.testing.assert_array_equal(curve.low, second.scores[key].low)


def test_two_results_at_one_place_are_refused():
    twice = [cell(16, {"math": [1.0]}), {**cell(16, {"math": [0.0]}), "cell": "other"}]
    with pytest.raises(UserError, match=r"both stand at .*'volume': 16.*name in coords"):
        analyze(twice)


def test_no_results_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match=r"0 results given.*dynamics study run"):
        analyze([])


def test_other_axes_make_variants_and_each_has_the_untuned_model():
    made = [*make_results(seeds=(0, 1), volumes=(0, 16, 64), sizes=("0.2m",), order="interleaved")]
    made += make_results(seeds=(0, 1), volumes=(16, 64), sizes=("0.2m",), order="blocked")
    growths = analyze(made, bootstrap=FEW)
    assert {growth.grid.variant for growth in growths} == {"interleaved", "blocked"}
    assert all(growth.grid.volumes == (0, 16, 64) for growth in growths)


def test_a_full_volume_is_counted_in_records_per_ability():
    full = cell("full", {"math": [1.0, 0.0], "code": [0.0, 0.0]})
    full["run"] = {"counts": {"records": 4000}}
    (grid,) = read_grids([full, cell(16, {"math": [0.0, 0.0], "code": [0.0, 0.0]})])
    assert grid.volumes == (16, 2000)


def test_a_random_baseline_is_listed_apart():
    guess = cell(0, {"math": [0.0, 1.0]}, size="random", params=None)
    growth = analyze([guess, cell(16, {"math": [1.0, 1.0]})], bootstrap=FEW)[0]
    assert growth.grid.sizes == ("s",)
    assert growth.random == {"random": {"math": 0.5}}


# ---------------------------------------------------------------- sensitivity


def test_slopes_match_the_truth(growth):
    slopes = {row.ability: row for row in growth.sensitivities}
    for ability, expected in {"biology": 0.09, "chinese": 0.1, "reasoning": 0.05, "role_play": 0.0}.items():
        row = slopes[ability].data
        assert row.low <= expected <= row.high, ability
    steps = np.log2(np.array(growth.grid.params) / 210_000)
    at_large = 0.07 * np.mean([3.0, 2.0])  # math gains 0.07 per doubling and factor 4; large volumes: 256 and 1024
    assert steps[-1] > 2
    assert slopes["math"].size.low <= at_large <= slopes["math"].size.high
    assert slopes["biology"].size.low <= 0.05 <= slopes["biology"].size.high


def test_verdicts_tell_the_designed_abilities_apart(growth):
    data = {row.ability: row.data_verdict for row in growth.sensitivities}
    size = {row.ability: row.size_verdict for row in growth.sensitivities}
    assert data["creative_writing"] in ("saturates early at v≈64", "saturates early at v≈256")
    assert {data[name] for name in ("biology", "history", "chinese", "understanding", "math")} == {"responds to data"}
    assert data["ethics"] == data["role_play"] == "resists data"
    assert size["math"] == "needs size"
    assert size["biology"] == size["history"] == "responds to size"
    assert "size" in size["ethics"]
    assert size["ethics"] not in ("needs size", "responds to size")


@pytest.mark.parametrize(
    ("levels", "early"), [((0.2, 0.3, 0.3, 0.3), True), ((0.2, 0.3, 0.27, 0.24), False), ((0.2, 0.22, 0.2, 0.2), False)]
)
def test_a_score_saturates_early_only_where_it_stays_above_the_model_before_tuning(levels, early):
    noise = np.random.default_rng(0).normal(0, 0.03, (200, 1, 4))
    draws = np.array(levels) + np.concatenate([np.zeros((1, 1, 4)), noise])
    (row,) = sensitivities({"overall": draws}, [9], [0, 1, 4, 16], overall="overall", level=0.95)
    assert (row.data_verdict == "saturates early at v≤1") == early


def test_one_size_or_one_volume_gives_no_slope_and_says_so():
    row = analyze(make_results(sizes=("0.2m",), volumes=(64,)), bootstrap=FEW)[0].sensitivities[0]
    assert (row.data, row.size) == (None, None)
    assert (row.data_verdict, row.size_verdict) == ("one volume only", "one size only")


def test_transfer_shows_the_gain_over_the_untuned_model():
    truth = {
        "math": (0.0, lambda p, v: 0.2 if v == 0 else 0.7),
        "code": (0.0, lambda p, v: 0.3),
    }
    made = make_results(truth=truth, volumes=(0,), sizes=("0.2m",))
    made += make_results(truth=truth, volumes=(64,), sizes=("0.2m",), training="math")
    (matrix,) = analyze(made, bootstrap=FEW)[0].transfers
    assert matrix.training == ("math",)
    assert matrix.baseline == "the model before tuning"
    gains = dict(zip(matrix.abilities, matrix.gains[0], strict=True))
    assert gains["math"].low <= 0.5 <= gains["math"].high
    assert gains["math"].positive
    assert not gains["code"].positive


def test_transfer_is_not_shown_without_such_cells(growth):
    assert growth.transfers == ()


def test_a_full_study_is_analyzed_in_seconds():
    made = make_results(seeds=range(5), volumes=(4, 16, 64, 256, 1024, 4096, 16384))
    assert len(made) == 105
    start = time.process_time()
    (growth,) = analyze(made, bootstrap=Bootstrap(draws=1000))
    assert time.process_time() - start < 10
    assert len(growth.scores) == (len(TRUTH) + 1) * 3


def test_an_interval_of_rounding_errors_excludes_nothing():
    assert not Interval(value=1e-17, low=1e-18, high=1e-16).positive
    assert not Interval(value=-1e-17, low=-1e-16, high=-1e-18).negative
    assert Interval(value=0.01, low=0.001, high=0.02).positive
