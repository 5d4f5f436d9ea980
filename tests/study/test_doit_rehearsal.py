"""The whole study of the DoIT paper: a small cut of every grid here, all of it in the slow tests."""

import csv
import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from dynamics.data.doit import CEVAL_NAMES
from dynamics.data.rehearsal import DoitRehearsal
from dynamics.eval.benchmarks import AgiEval, Cmmlu
from dynamics.record import ABILITY_NAMES
from dynamics.study.execution import run_study
from dynamics.study.report import write_report
from dynamics.study.results import load_results
from dynamics.study.run import Budget

from .tiny import RUN, SIZE, changed

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "doit" / "rehearsal.py"
MIXTURES = ("reconstruct", "maximum", "mix-10", "mix-163")  # 2,560 and 40,960 over the scale


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cut of the rehearsal with a step or two in each cell: {cell: scores} and the report's folder."""
    folder = tmp_path_factory.mktemp("rehearsal")
    config = runpy.run_path(str(CONFIG))
    source = DoitRehearsal(scale=250, valid_items=1, test_items=2, corpus_documents=160)
    run = changed(
        config["rehearsed"](), source=source, size=SIZE, vocab_size=700, base=None, budget=Budget(epochs=1),
        evaluate_at=(1.0,), choose_after=0.0,
        evaluation=dataclasses.replace(RUN.evaluation, max_new_tokens=2, row_length=256, batch_tokens=4096),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAMICS_CACHE", str(folder / "cache"))
        benchmarks = tuple(
            kind(data_dir="{data_dir}/" + kind(data_dir="").name, limit=1, shots=(0, 5)) for kind in (Cmmlu, AgiEval)
        )
        study = config["study"](
            run, sizes=(SIZE,), volumes=(1, 4), synthetic_volumes=(10, 40), benchmarks=benchmarks, seeds=(0,)
        )
        done = run_study(study, folder / "study", way="singles", cache=folder / "cache")
    assert done.failed == {}
    return load_results(folder / "study"), folder / "study"


def test_every_grid_of_the_paper_is_run(finished):
    results, _ = finished
    coords = [result["coords"] for result in results]
    curated = [one for one in coords if (one["source"], one["mixture"], one["abilities"]) == ("curated", "even", "all")]
    assert sorted(one["records"] for one in curated) == [10, 40]
    assert sorted(one["records"] for one in coords if one["source"] == "synthetic") == [10, 40]
    assert {one["mixture"] for one in coords} == {"even", *MIXTURES}
    assert {one["abilities"] for one in coords} == {"all", *ABILITY_NAMES}
    assert len(results) == 2 + 2 + 4 + 10, "the baseline of the mixtures is the largest curated cell"


def test_every_model_is_scored_in_domain_and_out_of_it(finished):
    results, _ = finished
    for result in results:
        assert set(result["test"]) == {*ABILITY_NAMES, *CEVAL_NAMES}
        assert set(result["valid"]) == set(ABILITY_NAMES)
        assert result["chosen"]["rule"]


def test_the_mixtures_and_their_baseline_read_the_benchmarks(finished):
    results, _ = finished
    read = [result for result in results if result.get("benchmarks")]
    assert sorted(one["coords"]["mixture"] for one in read) == sorted(["even", *MIXTURES])
    (baseline,) = [one["coords"] for one in read if one["coords"]["mixture"] == "even"]
    assert (baseline["source"], baseline["records"]) == ("curated", 40)
    for entries in (one["benchmarks"] for one in read):
        assert {(one["benchmark"], one["shots"]) for one in entries} == {
            ("cmmlu", 0), ("cmmlu", 5), ("agieval", 0), ("agieval", 5)
        }  # fmt: skip
        assert all(one["num_items"] > 0 and 0 <= one["micro"] <= 1 for one in entries)


def test_the_report_has_every_table_and_figure(finished, tmp_path):
    results, _ = finished
    page = write_report(results, {"name": "cut"}, tmp_path).read_text(encoding="utf-8")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for table in ("results", "sensitivity", "laws", "transfer", "gaps", "exchange", "mixtures", "benchmarks"):
        assert written[table], table
    assert {row["mixture"] for row in written["mixtures"]} == {"baseline", *MIXTURES}
    for words in ("human records worth against synthetic", "one ability do for the others", "C-Eval"):
        assert words in page


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_rehearsal_finishes_and_finds_what_its_data_were_made_to_show(tmp_path):
    """By design (docs/guide/doit-data.md) human records are worth more than synthetic ones of the same number."""
    command = [sys.executable, "-m", "dynamics.cli", "study", "run", str(CONFIG), "--output", str(tmp_path)]
    subprocess.run(command, check=True)
    folder = tmp_path / "doit_rehearsal"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["cells"]["done"] == report["cells"]["planned"] >= 140
    overall = [row for row in report["gaps"] if row["ability"] == "overall" and row["records"] == 620]
    assert len(overall) == 2, "two sizes"
    assert all(row["gap_low"] > 0 for row in overall)
    with (folder / "benchmarks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {round(float(row["epoch"])) for row in rows if row["mixture"] == "baseline"} == {5, 10, 15}
