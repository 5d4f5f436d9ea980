"""The three questions at the top of a page: answered from intervals, or said to be not measured."""

import dataclasses
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
from dynamics.study.points import Grid, Items
from dynamics.study.report import axes_of, write_report
from dynamics.study.transfer import Gain, discoveries, transfer, two_sided

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
    assert first.endswith(" Chance alone would make about 0.7 of 13.")
    assert last.startswith("Of 36 pairs of one ability trained and another measured, the 95% interval of ")
    assert "where chance alone would make about 2" in last
    assert "code → math +" in last


def null_grids(draw, seed_sd, *, names=("math", "code", "biology", "history"), num_items=40, num_seeds=3, own=0.0):
    """Cells of one ability each, three seeds, around a model before tuning; nothing moves but what is trained."""
    hard = draw.uniform(-0.15, 0.15, (len(names), num_items))
    untuned = draw.random(hard.shape) < 0.4 + hard
    grids = []
    for trained in names:
        luck = draw.normal(0, seed_sd, (num_seeds, len(names)))
        items = {}
        for row, name in enumerate(names):
            scores = np.full((num_seeds, 1, 2, num_items), np.nan)
            scores[0, 0, 0] = untuned[row]
            for seed in range(num_seeds):
                p = 0.4 + hard[row] + luck[seed, row] + own * (name == trained)
                scores[seed, 0, 1] = draw.random(num_items) < np.clip(p, 0, 1)
            items[name] = Items(
                ids=tuple(map(str, range(num_items))),
                chance=np.full(num_items, 0.25),
                scores=scores,
                loss_sums=scores,
                num_tokens=np.ones_like(scores),
            )
        grids.append(
            Grid(
                variant="",
                training=trained,
                sizes=("s",),
                params=(9,),
                volumes=(0, 10),
                totals=(0, 10),
                seeds=tuple(range(num_seeds)),
                items=items,
            )
        )
    return grids


@pytest.mark.parametrize(("seed_sd", "own"), [(0.0, 0.0), (0.06, 0.0), (0.12, 0.0), (0.03, 0.5)])
def test_a_study_without_transfer_rarely_leaves_a_discovery(seed_sd, own):
    """Three seeds through the bootstrap: 5% of studies, and no more of them beside large gains of each from itself."""
    draw = np.random.default_rng(1)
    wrong = []
    for _ in range(100):
        (matrix,) = transfer(null_grids(draw, seed_sd, own=own), Bootstrap(draws=100))
        assert [row[index] for index, row in enumerate(matrix.survives)] == [None] * 4
        wrong.append(any(kept for row in matrix.survives for kept in row))
    assert np.mean(wrong) <= 0.1


def test_the_chance_of_a_pair_knows_how_few_seeds_there_are():
    """By hand: t = 2 with 2 degrees of freedom has the chance 0.184, with many the normal one of 0.0455."""
    of_seeds = Gain(gain=0.2, variance=0.01, seed_variance=0.01, num_items=10**9, num_seeds=3)
    of_items = Gain(gain=0.2, variance=0.01, seed_variance=0.0, num_items=10**9, num_seeds=3)
    assert two_sided([of_seeds], measured=1) == [pytest.approx(0.18350, abs=1e-4)]
    assert two_sided([of_items], measured=1) == [pytest.approx(0.04550, abs=1e-4)]
    lucky, typical = two_sided([of_items, of_seeds], measured=2)
    assert lucky > 0.05  # its own three seeds agree, but the others say what seeds can do
    assert typical < 0.18350


def test_a_planted_effect_among_many_is_kept():
    assert discoveries([1e-6, *np.linspace(0.01, 1, 99)]) == [True, *[False] * 99]
    nothing = Gain(gain=0.3, variance=0.0, seed_variance=0.0, num_items=9, num_seeds=3)
    assert two_sided([nothing], measured=1) == [1.0]  # nothing varies: no claim


def test_the_finding_on_transfer_is_that_of_the_largest_size(growths):
    (matrix,) = growths[0].transfers
    larger = dataclasses.replace(matrix, size="13b", params=2 * matrix.params)
    both = [dataclasses.replace(growths[0], transfers=each) for each in ((matrix, larger), (larger, matrix))]
    for growth in both:
        assert "(size 13b, " in findings([growth], [], None, [])[2].lines[0]


# ---------------------------------------------------------------- the page


def test_every_question_is_answered_where_its_cells_are_there(results):
    first, second, third = all_findings(results)
    assert first.measured
    assert second.measured
    assert third.measured
    assert any(line.startswith("Out of domain, on what nothing was trained for") for line in first.lines)
    assert second.lines[0].startswith("At equal volume (10–2,560 records")
    assert len(second.lines) <= 4
    assert any(line.startswith("Clearly ahead with curated data: ") for line in second.details)


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
        "More on this question",
        "Differences are not corrected for their number: about one in 20 is bold by chance",
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
