"""The three questions at the top of a page: answered from intervals, or said to be not measured."""

import itertools
import json
import re

import numpy as np
import pytest

from dynamics.study import figures
from dynamics.study.benchmark_tables import benchmark_rows
from dynamics.study.comparison_tables import published_rows
from dynamics.study.contrast import contrasts
from dynamics.study.curves import OUT_OF_DOMAIN, OVERALL, Bootstrap, analyze
from dynamics.study.findings import findings, transfer_lines
from dynamics.study.gather import num_trained, records_of
from dynamics.study.mixtures import mixtures
from dynamics.study.report import axes_of, write_report
from dynamics.study.sensitivity import discoveries, two_sided

from .paper_results import MEASURED, OUTSIDE, TRAINED_ALONE, make_paper_results
from .synthetic_results import TRUTH, make_results, make_summary
from .test_report import Page

FEW = Bootstrap(draws=100)


@pytest.fixture(scope="module")
def results():
    return make_paper_results(
        sizes=("7b",), curated_totals=(0, 10, 160, 2560, 10_000), synthetic_totals=(0, 10, 160, 2560, 40_960)
    )


@pytest.fixture(scope="module")
def growths(results):
    return analyze(results, bootstrap=FEW)


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = write_report(results, make_summary(results), tmp_path_factory.mktemp("paper"), bootstrap=FEW)
    return path, path.read_text(encoding="utf-8")


def all_findings(results):
    return findings(
        analyze(results, bootstrap=FEW),
        contrasts(results, bootstrap=FEW),
        mixtures(results, bootstrap=FEW),
        benchmark_rows(results, bootstrap=FEW),
    )


# ---------------------------------------------------------------- means


def test_overall_is_the_mean_over_the_roster_and_the_others_have_a_mean_of_their_own(growths):
    growth = growths[0]
    assert growth.abilities == MEASURED
    end = {name: growth.scores[name, "7b"].mean[-1] for name in growth.chance}
    assert end[OVERALL] == pytest.approx(np.mean([end[name] for name in MEASURED if name not in OUTSIDE]))
    assert end[OUT_OF_DOMAIN] == pytest.approx(np.mean([end[name] for name in OUTSIDE]))


def test_the_published_mean_is_told_with_what_it_is(growths):
    row = published_rows(growths)[-1]
    curve = growths[-1].scores
    mean = np.mean([curve[name, "7b"].mean[-1] for name in MEASURED])
    assert row["mean_of_all"] == pytest.approx(mean)
    assert row["as_published"] == pytest.approx(mean / 2)
    assert row["abilities"] == 13


def test_a_study_of_the_roster_alone_has_no_mean_out_of_domain():
    growth = analyze(make_results(seeds=(0,), sizes=("0.2m",), volumes=(16, 64)), bootstrap=FEW)[0]
    assert OUT_OF_DOMAIN not in growth.chance
    assert growth.everything == {}
    assert published_rows([growth]) == []


def test_abilities_that_are_only_measured_do_not_count_as_trained():
    (cell,) = make_results(seeds=(0,), sizes=("0.2m",), volumes=(16,))
    cell["test"]["ceval_physician"] = cell["test"]["math"]
    assert num_trained(cell) == len(TRUTH)
    assert records_of(cell) == 160
    cell["coords"]["source"] = "synthetic"
    assert records_of(cell) == 16


# ---------------------------------------------------------------- transfer


def test_transfer_cells_of_another_grid_stand_beside_the_whole_one(growths):
    (matrix,) = growths[0].transfers
    assert matrix.training == ("all", *TRAINED_ALONE)
    assert (matrix.size, matrix.volume, matrix.baseline) == ("7b", 1000, "the model before tuning")
    assert matrix.abilities == MEASURED
    others = dict(zip(matrix.abilities, matrix.from_others, strict=True))
    assert others["math"].low <= 0.1 <= others["math"].high  # planted: +0.2 from code, nothing from biology
    itself = dict(zip(matrix.abilities, matrix.from_itself, strict=True))
    assert itself["biology"].positive
    assert itself["history"] is None


def test_the_sentences_say_how_many_pairs_chance_would_make(growths):
    (matrix,) = growths[0].transfers
    first, *_, last = transfer_lines(matrix, 0.95)
    assert first.startswith(
        "Trained on others alone (size 7b, 1,000 records of one ability or set, over the model before"
    )
    assert re.search(r"math \+\d", first)
    assert last.startswith("Of 36 pairs of one ability trained and another measured, the 95% interval of ")
    assert "where chance alone would make about 2" in last
    assert "code → math +" in last


def test_many_tests_of_nothing_rarely_leave_a_discovery():
    """100 tests of nothing: at 95% about five are clear; after the step-up rule a study has any in about 5 of 100."""
    draw = np.random.default_rng(0)
    naive, kept = [], []
    for _ in range(100):
        draws = draw.normal(0, 1, (100, 1)) + np.concatenate(
            [np.zeros((100, 1)), draw.normal(0, 1, (100, 200))], axis=1
        )
        chances = [two_sided(row) for row in draws]
        naive.append(sum(chance < 0.05 for chance in chances))
        kept.append(any(discoveries(chances)))
    assert 3 < np.mean(naive) < 8
    assert np.mean(kept) < 0.15


def test_a_planted_effect_among_many_is_kept():
    assert discoveries([1e-6, *np.linspace(0.01, 1, 99)]) == [True, *[False] * 99]
    assert two_sided(np.array([0.3, 0.3, 0.3, 0.3])) == 1.0  # nothing varies: no claim


# ---------------------------------------------------------------- the page


def test_every_question_is_answered_where_its_cells_are_there(results):
    first, second, third = all_findings(results)
    assert first.measured
    assert second.measured
    assert third.measured
    assert any(line.startswith("Out of domain, on what nothing was trained for") for line in first.lines)
    assert second.lines[0].startswith("At equal volume (10–2,560 records")


def test_a_question_without_cells_is_said_to_be_not_measured():
    first, second, third = all_findings(make_results(seeds=(0,), sizes=("0.2m",), volumes=(0, 16, 64)))
    assert first.measured
    assert not second.measured
    assert second.lines[0].startswith("Not measured here")
    assert third.lines[0].startswith("Not measured here")


def test_the_page_holds_every_section_and_closes_its_tags(page):
    path, text = page
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    said = parsed.words
    for heading in (
        "1. Which abilities need more data",
        "2. What are human records worth",
        "3. What does training on one ability",
        "Curated against synthetic",
        "Gap and rate of exchange",
        "Mixtures",
        "Benchmarks",
        "Beside the published scores (7B)",
        "The mean as it was published",
    ):
        assert heading in said, heading
    for name in ("contrast-synthetic-7b", "mixtures-7b", "benchmarks", "transfer1-1"):
        assert (path.parent / "figures" / f"{name}.png").stat().st_size > 5_000
    assert all((path.parent / link).is_file() for link in parsed.links if link)
    assert {"gaps.csv", "exchange.csv", "mixtures.csv", "benchmarks.csv", "published.csv"} <= set(parsed.links)


def test_the_machine_readable_report_holds_the_comparisons(page):
    data = json.loads((page[0].parent / "report.json").read_text(encoding="utf-8"))
    assert len(data["mixtures"]) == 5 * 15
    assert {row["outcome"] for row in data["exchange"]} >= {"reached", "never reached"}
    assert data["gaps"]
    assert len(data["benchmarks"]) == 60


def test_volumes_and_records_are_listed_in_their_order(results):
    axes = axes_of(results)
    assert axes["records"] == sorted(axes["records"])
    assert set(axes["mixture"]) == {"even", "reconstruct", "maximum", "mix-2560", "mix-40960"}


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    "volumes", [(4, 16, 64, 256, 512), (0, 1, 4, 16, 64, 256, 512, 1024), (0, 2560, 10_000, 40_960)]
)
def test_labels_of_the_volume_axis_never_touch(volumes):
    figure = figures.new_figure(2.6, 2.0)
    axes = figure.subplots()
    figures.volume_axis(axes, volumes)
    figures.FigureCanvasAgg(figure).draw()
    assert axes.get_window_extent().width / figure.dpi > 1.6
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 3
    scale = 1.6 / (axes.get_window_extent().width / figure.dpi)
    for left, right in itertools.pairwise(boxes):
        middle = [(box.x0 + box.x1) / 2 * scale for box in (left, right)]
        assert middle[1] - middle[0] > (left.width + right.width) / 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("creative_writing", "Creative writing"),
        ("ceval_physician", "C-Eval physician"),
        ("out of domain", "Out of domain"),
    ],
)
def test_abilities_read_well(name, said):
    assert figures.ability_title(name) == said
