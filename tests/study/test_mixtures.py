"""Mixtures and benchmarks: differences from the baseline with known truths, and numbers computed by hand."""

import numpy as np
import pytest

from dynamics.errors import UserError
from dynamics.study import benchmark_tables, mixtures
from dynamics.study.benchmark_tables import benchmark_rows
from dynamics.study.curves import OVERALL, Bootstrap, analyze
from dynamics.study.findings import benchmark_lines, mixture_lines
from dynamics.study.mixtures import BASELINE
from dynamics.study.published import PUBLISHED, RECORDS, published

from .paper_results import BENCHMARKS, FLAT, benchmark_entry, make_paper_results
from .synthetic_results import make_results

FEW = Bootstrap(draws=200)


@pytest.fixture(scope="module")
def results():
    return make_paper_results(sizes=("7b",), curated_totals=(0, 640, 10_000), synthetic_totals=(0, 640, 10_000))


@pytest.fixture(scope="module")
def mixed(results):
    return mixtures.mixtures(results, bootstrap=FEW)


@pytest.fixture(scope="module")
def rows(results):
    return benchmark_rows(results, bootstrap=FEW)


# ---------------------------------------------------------------- mixtures


def test_variants_of_one_volume_go_to_the_table_and_get_no_growth_section(results, mixed):
    assert {growth.grid.variant for growth in analyze(results, bootstrap=FEW)} == {"curated", "synthetic"}
    assert [row.name for row in mixed.rows] == [BASELINE, "reconstruct", "maximum", "mix-2560", "mix-40960"]
    assert [row.records for row in mixed.rows] == [10_000, 10_000, 39_618, 42_178, 80_578]


def test_the_baseline_is_curated_at_its_largest_volume_and_differs_from_itself_in_nothing(results, mixed):
    base = mixed.rows[0]
    cells = [r for r in results if r["coords"]["source"] == "curated" and r["coords"]["records"] == 10_000]
    assert base.scores["math"].value == pytest.approx(np.mean([r["test"]["math"]["scores"] for r in cells]))
    assert base.differences == {}


def test_planted_differences_lie_in_their_intervals(mixed):
    by_name = {row.name: row for row in mixed.rows}
    assert by_name["maximum"].differences[OVERALL].positive
    assert by_name["maximum"].differences[OVERALL].low <= 0.06 * 0.8 <= by_name["maximum"].differences[OVERALL].high
    flat = [row.differences[name] for row in mixed.rows[1:] for name in FLAT]
    assert np.mean([item.positive or item.negative for item in flat]) < 0.2
    for row in mixed.rows[1:]:
        change = row.scores["math"].value - mixed.rows[0].scores["math"].value
        assert row.differences["math"].value == pytest.approx(change)


def test_mixtures_are_told_in_one_sentence_for_each_mean(mixed):
    overall, outside = mixture_lines(mixed)
    assert overall.startswith(
        "Mixtures at size 7b, overall, against the baseline of 10,000 curated records: reconstruct "
    )
    assert ", out of domain, " in outside
    assert len(mixtures.rows_of(mixed)) == 5 * 15


def test_missing_seeds_of_a_baseline_and_of_a_mixture_are_told(results):
    missing = {("even", 10_000): (1, 2), ("maximum", 39_618): (2,)}
    some = [
        r for r in results
        if r["coords"]["seed"] not in missing.get((r["coords"]["mixture"], r["coords"]["records"]), ())
        or r["coords"]["source"] == "synthetic"
    ]  # fmt: skip
    found = mixtures.mixtures(some, bootstrap=FEW)
    assert found is not None
    said = mixture_lines(found)[0]
    assert "against the baseline of 10,000 curated records (1 of 3 seeds): reconstruct −" in said.replace("+", "−")
    assert "maximum (2 of 3 seeds) +" in said


def test_a_study_of_mixtures_alone_has_one_section_the_baselines(results):
    some = [r for r in results if r["coords"]["source"] not in ("synthetic",) and r["coords"]["volume"] != 64]
    some = [r for r in some if r["coords"]["abilities"] == "all"]
    (growth,) = analyze(some, bootstrap=FEW)
    assert growth.grid.variant == "curated"
    assert not growth.grows
    assert mixtures.mixtures(some, bootstrap=FEW) is not None


def test_a_study_without_mixtures_has_no_table_of_them():
    assert mixtures.mixtures(make_results(seeds=(0,), sizes=("0.2m",)), bootstrap=FEW) is None
    assert benchmark_rows(make_results(seeds=(0,), sizes=("0.2m",)), bootstrap=FEW) == []


# ---------------------------------------------------------------- benchmarks


def of(rows, **fields):
    return [row for row in rows if all(getattr(row, key) == value for key, value in fields.items())]


def test_every_reading_is_a_row_with_the_mean_over_seeds(results, rows):
    assert len(rows) == 5 * 2 * 2 * 3
    (row,) = of(rows, mixture="maximum", benchmark="cmmlu", shots=5, epoch=10)
    entries = [
        entry
        for result in results
        if result["coords"]["mixture"] == "maximum"
        for entry in result["benchmarks"]
        if (entry["benchmark"], entry["shots"], entry["epoch"]) == ("cmmlu", 5, 10.0)
    ]
    assert row.num_seeds == len(entries) == 3
    assert row.num_items == sum(BENCHMARKS["cmmlu"].values())
    assert row.macro.value == pytest.approx(np.mean([entry["macro"] for entry in entries]))
    assert row.micro.value == pytest.approx(np.mean([entry["micro"] for entry in entries]))
    assert row.chance_macro == 0.25


def test_macro_weighs_tasks_and_micro_questions_as_computed_by_hand(results):
    """a: 1 of 2, b: 4 of 4 -> macro (0.5 + 1) / 2 = 0.75, micro 5/6."""
    tasks = {"a": {"correct": "10", "chance": 0.25, "ids": "x"}, "b": {"correct": "1111", "chance": 0.25, "ids": "y"}}
    cell = {key: value for key, value in results[-1].items() if key != "benchmarks"}
    entry = {**benchmark_entry(np.random.default_rng(0), "cmmlu", 0, 0.5), "tasks": tasks, "step": 1, "epoch": 1.0}
    (row,) = benchmark_rows([{**cell, "benchmarks": [entry]}], bootstrap=FEW)
    assert (row.macro.value, row.micro.value) == (pytest.approx(0.75), pytest.approx(5 / 6))


def test_questions_are_drawn_within_their_tasks(results):
    """A task that is always right and one that is always wrong leave nothing to draw: the macro mean is 1/2."""
    tasks = {
        "a": {"correct": "1" * 9, "chance": 0.25, "ids": "x"},
        "b": {"correct": "0" * 9, "chance": 0.25, "ids": "y"},
    }
    cell = {key: value for key, value in results[-1].items() if key != "benchmarks"}
    entry = {**benchmark_entry(np.random.default_rng(0), "cmmlu", 0, 0.5), "tasks": tasks, "step": 1, "epoch": 1.0}
    (row,) = benchmark_rows([{**cell, "benchmarks": [entry]}], bootstrap=FEW)
    assert (row.macro.low, row.macro.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_differences_are_from_the_baseline_at_the_same_reading(rows):
    base, other = (of(rows, mixture=name, benchmark="cmmlu", shots=0) for name in (BASELINE, "mix-40960"))
    for first, second in zip(base, other, strict=True):
        assert first.macro_difference is None
        assert second.macro_difference.value == pytest.approx(second.macro.value - first.macro.value)
    assert of(other, reading=0)[0].macro_difference.negative  # planted: 0.35 against 0.3
    assert [row.epoch for row in base] == [5, 10, 15]


def test_the_interval_of_a_difference_covers_the_planted_one():
    covered = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        cells = []
        for name, p in (("even", 0.35), ("maximum", 0.42)):
            for s in range(3):
                coords = {"size": "s", "params": 9, "volume": 10, "records": 100, "abilities": "all", "seed": s}
                entry = {**benchmark_entry(draw, "cmmlu", 0, p), "step": 1, "epoch": 1.0}
                cell = {"cell": f"{name}{s}", "coords": {**coords, "mixture": name}, "test": {"math": {}}}
                cells.append({**cell, "benchmarks": [entry]})
        row = of(benchmark_rows(cells, bootstrap=Bootstrap(draws=100)), mixture="maximum")[0]
        assert row.macro_difference is not None
        covered.append(row.macro_difference.low <= 0.07 <= row.macro_difference.high)
    assert np.mean(covered) >= 0.85


def test_other_questions_are_not_compared(results):
    changed = []
    for result in results:
        if result["coords"]["mixture"] == "maximum" and "benchmarks" in result:
            entries = [
                {**entry, "tasks": {task: {**each, "ids": "other"} for task, each in entry["tasks"].items()}}
                for entry in result["benchmarks"]
            ]
            result = {**result, "benchmarks": entries}
        changed.append(result)
    rows = benchmark_rows(changed, bootstrap=FEW)
    assert all(row.macro_difference is None for row in of(rows, mixture="maximum"))
    assert all(row.macro_difference is not None for row in of(rows, mixture="reconstruct"))


def test_two_cells_of_one_place_are_refused(results):
    asked = next(result for result in results if result.get("benchmarks"))
    with pytest.raises(UserError, match="one row of the benchmarks"):
        benchmark_rows([asked, {**asked, "cell": "other"}], bootstrap=FEW)


def test_two_base_models_have_a_row_each_and_one_scored_twice_has_one(results):
    bases = [r for r in results if r["coords"]["volume"] == 0]
    assert {r["coords"]["source"] for r in bases} == {"curated", "synthetic"}
    draw = np.random.default_rng(0)
    first, second = ({**benchmark_entry(draw, "cmmlu", 0, p), "step": 0, "epoch": 0.0} for p in (0.2, 0.6))
    for entries, names in (
        ((first, first), {"before tuning"}),
        ((first, second), {"before tuning (curated)", "before tuning (synthetic)"}),
    ):
        cells = [{**base, "benchmarks": [entry]} for base, entry in zip(bases, entries, strict=True)]
        found = benchmark_rows(cells, bootstrap=FEW)
        assert {row.mixture for row in found} == names
        means = [entry["macro"] for entry in entries[: len(names)]]
        assert [row.macro.value for row in found] == pytest.approx(means)


def test_the_sentence_names_what_differs_clearly(rows):
    (line,) = benchmark_lines(rows)
    assert line.startswith("On the benchmarks at size 7b, clearly different from the baseline: ")
    assert "mix-40960 −" in line
    assert len(benchmark_tables.rows_of(rows)) == len(rows)


# ---------------------------------------------------------------- published scores


def test_published_scores_stand_beside_the_same_mixture_examples_and_epoch(rows):
    (row,) = of(rows, mixture="maximum", benchmark="agieval", shots=0, epoch=15)
    assert row.published == 0.3885
    assert sum(len(each) for each in PUBLISHED.values()) * 3 == 60
    assert published("maximum", 39_618, "ceval", 0, 15) is None
    assert published("curated", 10_000, "cmmlu", 0, 15) is None
    assert published("mix-2560", 5_026, "cmmlu", 0, 15) is None  # of that name in a rehearsal: another mixture


@pytest.mark.shared_data
def test_the_published_table_is_that_of_the_stored_reading(shared_data):
    lines = (shared_data / "reference_results" / "doit_table2_3_7b.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == 60
    for line in lines:
        mixture, _, benchmark, shots, epoch, score = line.split(",")
        found = published(mixture, RECORDS[mixture], benchmark.lower(), int(shots), float(epoch))
        assert found == pytest.approx(float(score) / 100)
