"""Curated against synthetic: planted gaps, rates and turns come back, and what cannot be known is said to be so."""

import copy
import math

import numpy as np
import pytest

from dynamics.study.comparison_tables import exchange_rows, gap_rows, late_rows
from dynamics.study.contrast import apart, contrasts
from dynamics.study.curves import MEANS, OUT_OF_DOMAIN, OVERALL, Bootstrap, analyze
from dynamics.study.exchange import Ratio, ratio, reach
from dynamics.study.findings import contrast_details, contrast_lines, ratio_text

from .paper_results import FLAT, RATE, Maker, grid, make_paper_results

FEW = Bootstrap(draws=200)
SIZE = "7b"


@pytest.fixture(scope="module")
def contrast():
    (found,) = contrasts(make_paper_results(sizes=(SIZE,), with_benchmarks=False, num_items=200), bootstrap=FEW)
    return found


def two_sources(*, seed, gap, rate=None, num_items=60, seeds=(0, 1, 2), totals=(0, 10, 40, 160, 640)):
    """One size; curated straight in log records, the other lower by `gap` (and so worth less by a known rate)."""
    maker = Maker(seed=seed, num_items=num_items)

    def curated(ability, size, total):
        return 0.3 if total == 0 else 0.45 + 0.06 * np.log(total / 40) / np.log(4)

    made = grid(maker, "curated", curated, totals, (SIZE,), seeds)
    made += grid(maker, "synthetic", lambda *at: curated(*at) - gap * (at[2] > 0), totals, (SIZE,), seeds)
    for cell in made:
        cell["test"] = {"math": cell["test"]["math"]}
    return made


# ---------------------------------------------------------------- gap


def test_the_interval_of_a_gap_covers_the_planted_one_as_often_as_it_says():
    """Of one volume, and of the mean over all volumes that both have."""
    covered = []
    for seed in range(200):
        made = two_sources(seed=seed, gap=0.07, totals=(10, 40), num_items=50)
        (found,) = contrasts(made, bootstrap=FEW)
        covered.append([gap.low <= 0.07 <= gap.high for gap in (found.gaps["math", SIZE, 40], found.mean_gaps["math"])])
    for share in np.mean(covered, axis=0):
        assert 0.9 <= share <= 0.99


def test_gaps_are_paired_and_stand_at_equal_volumes(contrast):
    assert contrast.shared == (10, 40, 160, 640, 2560, 10_000)
    assert contrast.totals[-1] == 40_960
    assert (OVERALL, SIZE, 40_960) not in contrast.gaps
    planted = 0.05 * np.log(RATE) / np.log(4)  # where both are straight
    gap = contrast.gaps["code", SIZE, 640]
    assert gap.low <= planted <= gap.high
    line = {name: contrast.lines[name, "code", SIZE] for name in ("curated", "synthetic")}
    column = contrast.totals.index(640)
    assert gap.value == pytest.approx(line["curated"].mean[column] - line["synthetic"].mean[column])
    widths = [each.high[column] - each.low[column] for each in line.values()]
    assert gap.high - gap.low < math.hypot(*widths)  # narrower than two sides drawn apart


def test_abilities_without_a_gap_are_not_called_ahead(contrast):
    assert contrast.mean_gaps[OVERALL].positive
    flat = [contrast.mean_gaps[name] for name in (*FLAT, OUT_OF_DOMAIN)]
    assert sum(gap.positive or gap.negative for gap in flat) <= 1
    assert contrast.abilities[-2:] == MEANS


def test_volumes_that_differ_by_a_few_records_stand_at_one_place():
    made = two_sources(seed=0, gap=0.05)
    for cell in made:
        if cell["coords"]["source"] == "synthetic" and cell["coords"]["records"] == 640:
            cell["coords"]["records"] = 655
    (found,) = contrasts(made, bootstrap=FEW)
    assert found.shared == (10, 40, 160, 640)


def test_two_base_models_are_told_and_one_is_not(contrast):
    told = "they start from different base models"
    assert told not in " ".join(contrast_lines(contrast))
    (apart,) = contrasts(two_sources(seed=4, gap=0.05), bootstrap=FEW)
    assert told in " ".join(contrast_lines(apart))


# ---------------------------------------------------------------- rate of exchange


def test_a_curve_is_reached_where_it_first_is_and_a_later_fall_does_not_undo_it():
    totals = np.array([10.0, 40.0, 160.0, 640.0])
    falling = np.array([[0.2, 0.4, 0.6, 0.3]])
    assert reach(falling, totals, np.array([0.4])).tolist() == [[40.0], [40.0]]
    assert reach(falling, totals, np.array([0.2])).tolist() == [[0.0], [10.0]]
    assert reach(falling, totals, np.array([0.61])).tolist() == [[640.0], [math.inf]]


def test_the_median_of_censored_rates_keeps_its_bounds():
    known, never, soon = (np.array([[low] * 5, [high] * 5]) for low, high in ((80.0, 80.0), (640.0, math.inf), (0, 10)))
    found = ratio([known, never, never], [10, 20, 40], level=0.95)
    assert found is not None
    assert (found.at_least, found.at_most, found.high) == (16.0, math.inf, math.inf)  # of 8, >= 32 and >= 16
    even = ratio([known, soon], [10, 10], level=0.95)
    assert even is not None
    assert (even.at_least, even.at_most) == (0.0, pytest.approx(math.sqrt(8.0)))  # of 8 and <= 1
    assert ratio([], [], level=0.95) is None


@pytest.mark.parametrize(
    ("at_least", "at_most", "low", "high", "said"),
    [
        (12.3, 12.3, 8.0, 20.0, "12.3× [8, 20]"),
        (64.0, math.inf, 30.0, math.inf, "≥ 64× [30, ∞)"),
        (0.0, 0.5, 0.0, 1.2, "≤ 0.5× (0, 1.2]"),
        (5.0, 9.0, 0.0, math.inf, "5–9× (0, ∞)"),
        (4096.4, 4096.4, 2000.0, 9000.0, "4,100× [2,000, 9,000]"),
    ],
)
def test_a_rate_says_what_it_does_not_know(at_least, at_most, low, high, said):
    found = Ratio(at_least=at_least, at_most=at_most, low=low, high=high)
    assert ratio_text(found).replace("\N{NO-BREAK SPACE}", " ") == said


def test_the_interval_of_a_rate_covers_the_planted_one():
    """Synthetic is lower by 0.06, which is one factor 4 of records."""
    covered, exact = [], 0
    for seed in range(40):
        made = two_sources(seed=seed, gap=0.06, totals=(0, 40, 160, 640, 2560, 10_240), num_items=150)
        made = [
            cell
            for cell in made
            if cell["coords"]["source"] == "synthetic" or cell["coords"]["records"] in (0, 160, 640)
        ]
        (found,) = contrasts(made, bootstrap=FEW)
        rate = found.exchanges["math", SIZE].median
        assert rate is not None
        exact += rate.exact
        covered.append(rate.low <= 4 <= rate.high)
    assert 0.88 <= np.mean(covered) <= 1
    assert exact > 30


def test_a_score_that_is_never_reached_gives_a_bound_and_no_number(contrast):
    """Synthetic data turn down at 2,560 records, worth 320 curated ones."""
    exchange = contrast.exchanges[OVERALL, SIZE]
    assert exchange.over == "the model before tuning"
    for total in (2560, 10_000):
        rate = exchange.at[total]
        assert rate is not None
        assert math.isinf(rate.at_most)
        assert rate.at_least == pytest.approx(40_960 / total)
    early = exchange.at[160]
    assert early is not None
    assert early.exact
    assert early.low <= RATE <= early.high


def test_a_rate_is_not_defined_where_curated_data_gain_nothing(contrast):
    undefined = [name for name in FLAT if contrast.exchanges[name, SIZE].median is None]
    assert len(undefined) >= len(FLAT) - 1
    rows = {(row["ability"], row["records"]): row for row in exchange_rows([contrast])}
    row = rows[undefined[0], "median"]
    assert row["at_least"] is None
    assert row["outcome"] == "not defined: no clear gain over the model before tuning"


def test_without_a_model_before_tuning_gains_are_over_chance():
    (found,) = contrasts(two_sources(seed=1, gap=0.05, totals=(10, 40, 160)), bootstrap=FEW)
    assert found.exchanges["math", SIZE].over == "chance"


# ---------------------------------------------------------------- turning down, words, and when there is nothing


def test_a_curve_that_turns_down_is_found_over_its_later_half(contrast):
    assert contrast.late_from["synthetic", OVERALL] == 640
    assert contrast.late["synthetic", OVERALL].negative
    assert contrast.late["curated", OVERALL].positive
    assert {row["source"] for row in late_rows([contrast])} == {"curated", "synthetic"}


def test_the_findings_follow_from_the_intervals(contrast):
    said = " ".join([*contrast_lines(contrast), *contrast_details(contrast)])
    assert "At equal volume (10–10,000 records, mean over 6 volumes) curated data score +" in said
    assert "Synthetic records needed for one curated record, overall: ≥ " in said
    assert "; 40,960 synthetic records do not reach the score at " in said
    assert "(it falls; curated from 160 on +" in said
    assert "not defined, without a clear gain: role play" in said.replace("ethics and role play", "role play")
    rows = gap_rows([contrast])
    assert {row["records"] for row in rows} >= {0, 10, "mean"}


def of_source(made, name):
    return [cell for cell in made if cell["coords"]["source"] == name]


def test_two_volumes_near_one_are_told_apart_and_the_nearest_is_compared():
    made = two_sources(seed=0, gap=0.05, totals=(0, 100, 400))
    near = [copy.deepcopy(cell) for cell in of_source(made, "synthetic") if cell["coords"]["records"] == 100]
    for records, cells in (
        (97, near),
        (102, [c for c in of_source(made, "synthetic") if c["coords"]["records"] == 100]),
    ):
        for cell in cells:
            cell["coords"]["records"] = records
            cell["run"]["counts"]["records"] = records
            cell["cell"] += str(records)
    (found,) = contrasts(made + near, bootstrap=FEW)
    assert found.shared == (100, 400)
    assert found.beside == (97,)
    (said,) = [line for line in contrast_details(found) if "97 records" in line]
    assert said.startswith("1 synthetic volume (97 records) within 5% of a curated one")
    means = [np.mean(cell["test"]["math"]["scores"]) for cell in made if cell["coords"]["records"] == 102]
    assert found.lines["synthetic", "math", SIZE].mean[found.totals.index(100)] == pytest.approx(np.mean(means))


def test_abilities_that_one_source_was_not_measured_on_are_left_out_and_told():
    made = make_paper_results(sizes=(SIZE,), with_benchmarks=False, num_items=20)
    for cell in made:
        if cell["coords"]["source"] == "synthetic":
            cell["test"] = {name: each for name, each in cell["test"].items() if name != "ethics"}
        if cell["coords"]["source"] == "synthetic" and cell["coords"]["volume"] == 0:
            cell["test"] = {name: {**each, "scores": each["scores"][::-1]} for name, each in cell["test"].items()}
    (found,) = contrasts(made, bootstrap=FEW)
    assert "ethics" not in found.abilities
    assert contrast_lines(found)[0].startswith("At equal volume (10–10,000 records")
    assert "Left out, since one of the two was not measured on it: ethics." in contrast_details(found)
    for cell in of_source(made, "synthetic"):
        cell["test"] = {"other": cell["test"]["math"]}
    assert contrasts(made, bootstrap=FEW) == []
    assert apart(made) == ["Curated and synthetic are not compared: no ability was measured on both."]


def in_order(cells, order):
    made = copy.deepcopy(cells)
    for cell in made:
        cell["coords"]["order"] = order
        cell["cell"] += order
    return made


def test_both_sides_are_taken_at_an_order_that_both_have():
    """Interleaved curated cells come first and are as many; synthetic ones are blocked only."""
    made = two_sources(seed=0, gap=0.05, totals=(10, 40, 160))
    curated = of_source(made, "curated")
    blocked = in_order(curated, "blocked")
    for cell in blocked:
        cell["test"]["math"]["scores"] = [1.0] * len(cell["test"]["math"]["scores"])
    theirs = in_order(of_source(made, "synthetic"), "blocked")
    for mine in (curated + blocked, blocked + curated):
        (found,) = contrasts(mine + theirs, bootstrap=FEW)
        assert found.lines["curated", "math", SIZE].mean[0] == 1.0
        assert (found.setting, found.left_out) == ("order blocked", 9)
    assert contrasts(curated + theirs, bootstrap=FEW) == []
    (said,) = apart(curated + theirs)
    assert said.endswith("(curated: order interleaved; synthetic: order blocked).")


def test_what_does_not_reach_the_score_is_what_the_other_source_had():
    made = make_paper_results(sizes=(SIZE,), with_benchmarks=False, synthetic_totals=(0, 10, 40, 160, 640))
    (found,) = contrasts(made, bootstrap=FEW)
    assert found.totals[-1] == 10_000
    assert found.largest_other() == 640
    assert "; 640 synthetic records do not reach the score at " in " ".join(contrast_lines(found))


def test_the_later_half_is_that_of_each_ability():
    made = make_paper_results(sizes=(SIZE,), with_benchmarks=False, num_items=20)
    for cell in made:
        if cell["coords"]["source"] == "synthetic" and cell["coords"]["records"] == 40_960:
            cell["test"].pop("code")
            cell["test"].pop("math")
    (found,) = contrasts(made, bootstrap=FEW)
    rows = {(row["source"], row["ability"]): row["from_records"] for row in late_rows([found])}
    assert rows["synthetic", "biology"] == 640
    assert rows["synthetic", "code"] == 160


def test_one_source_or_one_volume_is_nothing_to_compare():
    made = two_sources(seed=0, gap=0.05)
    curated = [cell for cell in made if cell["coords"]["source"] == "curated"]
    assert contrasts(curated, bootstrap=FEW) == []
    single = [cell for cell in made if cell["coords"]["source"] == "synthetic" and cell["coords"]["records"] == 40]
    assert contrasts(curated + single, bootstrap=FEW) == []


def test_the_curated_source_comes_first_and_a_synthetic_volume_counts_all_records():
    first, second = analyze(two_sources(seed=0, gap=0.05, totals=(0, 10, 40, 160)), bootstrap=FEW)
    assert (first.grid.variant, second.grid.variant) == ("curated", "synthetic")
    assert first.grid.per == "records per ability"
    assert second.grid.per == "records"
    assert second.grid.volumes == second.grid.totals == (0, 10, 40, 160)
    assert first.grid.totals == (0, 10, 40, 160)
