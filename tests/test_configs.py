"""Every file in configs/ builds, survives JSON, names its cells, and says in its docstring how to run it."""

import argparse
import ast
import dataclasses
import json
from pathlib import Path

import pytest

from dynamics import config
from dynamics.cli import main
from dynamics.cli.options import load_study
from dynamics.errors import UserError
from dynamics.model.llama import LlamaConfig
from dynamics.record import ABILITY_NAMES
from dynamics.study.execution import run_study
from dynamics.study.grid import Study
from dynamics.study.results import load_results
from dynamics.study.run import Budget, Run, benchmarks_of

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.glob("**/*.py"))


def name_of(path):
    return path.relative_to(FOLDER).as_posix()


def function_of(path):
    names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return next(name for name in ("study", "run") if name in names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_config_builds_and_survives_json(path):
    value = config.load(path, function=function_of(path))
    assert isinstance(value, Study | Run)
    assert config.from_json(config.to_json(value)) == value


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_config_says_its_command_and_what_to_expect(path):
    words = ast.get_docstring(ast.parse(path.read_text()))
    command = "study run" if function_of(path) == "study" else "train"
    assert f"dynamics {command} configs/{name_of(path)}" in words
    assert "Expect" in words
    assert "minutes" in words


@pytest.mark.parametrize("name", ["practice", "practice_full"])
def test_the_practice_studies_have_distinct_cells_that_their_pool_can_fill(name):
    study = config.load(FOLDER / f"{name}.py", function="study")
    cells = study.cells()
    assert len({cell.id for cell in cells}) == len(cells)
    assert max(study.volumes) <= study.run.source.pool
    sizes, volumes, seeds = (2, 5, 2) if name == "practice" else (3, 7, 5)
    assert (len(study.sizes), len(study.volumes), len(study.seeds)) >= (sizes, volumes, seeds)


def test_the_full_study_shares_its_base_models_with_the_short_one():
    short, full = (config.load(FOLDER / f"{name}.py", function="study") for name in ("practice", "practice_full"))
    assert short.run.base == full.run.base
    assert short.run.source == full.run.source


def doit(name):
    return config.load(FOLDER / "doit" / f"{name}.py", function="study")


def planned(name, tmp_path, monkeypatch, capsys, *options):
    """The plan of one of the paper's studies where its data are not."""
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = str(FOLDER / "doit" / f"{name}.py")
    assert main(["plan", path, "--topology", "v5p:4x4x4", "--estimate", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_papers_grids_have_its_sizes_volumes_and_three_seeds():
    cells = {name: len(doit(name).runs()) for name in ("curated", "synthetic", "mixtures", "transfer")}
    assert cells == {"curated": 3 * 6 * 3 + 3, "synthetic": 2 * 7 * 3 + 2, "mixtures": 5 * 3 + 1, "transfer": 31}
    for name in cells:
        assert all((run.batch.documents, run.budget, run.choose_after) == (64, Budget(epochs=15), 5)
                   for run in doit(name).runs())  # fmt: skip
    mixtures = doit("mixtures")
    assert [grid.run.recipe and grid.run.recipe.name for grid in mixtures.grids()] == [
        None, "reconstruct", "maximum", "mix-2560", "mix-40960"
    ]  # fmt: skip
    assert all(len(run.benchmarks) == len(run.benchmark_at) - 1 == 2 for run in mixtures.runs())


def test_the_papers_steps_are_planned_without_its_data(tmp_path, monkeypatch, capsys):
    (machine,) = planned("curated", tmp_path, monkeypatch, capsys)["machines"]
    steps = [cell["steps"] for cell in machine["cells"] if cell["size"] == "7b" and cell["seed"] == 0]
    assert steps == [0, 15, 15, 45, 150, 600, 2355]


def test_a_recipe_without_data_is_planned_by_assumed_counts_and_that_is_said(tmp_path, monkeypatch, capsys):
    found = planned("mixtures", tmp_path, monkeypatch, capsys)
    said = [note for note in found["notes"] if "computed from assumed counts" in note]
    assert [note.partition(",")[0] for note in said] == [
        "records of 'reconstruct': 10", "records of 'maximum': 39", "records of 'mix-2560': 42",
        "records of 'mix-40960': 80",
    ]  # fmt: skip
    steps = {cell["volume"]: cell["steps"] for cell in found["machines"][0]["cells"]}
    assert steps == {0: 0, 1000: 2355, "reconstruct": 2355, "maximum": 9300, "mix-2560": 9900, "mix-40960": 18_900}


def test_the_command_line_changes_every_grid_of_a_union_or_refuses():
    path = str(FOLDER / "doit" / "mixtures.py")

    def loaded(*assignments):
        return load_study(argparse.Namespace(config=path, set=assignments, data_dir="elsewhere", on_bad_record=None))

    study = loaded("run.batch.rows=64", "seeds=0,1", "name=mine")
    assert {run.batch.rows for run in study.runs()} == {64}
    assert {run.source.data_dir for run in study.runs()} == {"elsewhere"}
    assert {run.seed for run in study.runs()} == {0, 1}
    assert study.name == "mine"
    (place, _) = (one.data_dir for one in benchmarks_of(study.runs()[-1]))
    assert place == "elsewhere/../cmmlu"
    with pytest.raises(UserError, match="'doit_mixtures' has 5 grids, each with axes of its own"):
        loaded("volumes=1,2")


def test_the_real_study_names_a_folder_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNAMICS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    study = config.load(FOLDER / "real_small.py", function="study")
    with pytest.raises(UserError, match="--data-dir"):
        study.cells()
    moved = study.map_runs(lambda run: dataclasses.replace(run, source=dataclasses.replace(run.source, data_dir="/no")))
    with pytest.raises(UserError, match="/no"):
        moved.cells()


def test_a_cut_of_the_real_study_runs_on_the_real_files(shared_data, tmp_path):
    study = config.load(FOLDER / "real_small.py", function="study")
    run = study.run
    size = LlamaConfig(
        name="tiny", vocab_size=64, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32,
        tied_head=True,
    )  # fmt: skip
    cut = dataclasses.replace(
        study,
        run=dataclasses.replace(
            run,
            source=dataclasses.replace(run.source, data_dir=str(shared_data)),
            budget=Budget(updates=2),
            base=None,
            evaluation=dataclasses.replace(run.evaluation, max_new_tokens=2, max_length=256),
        ),
        sizes=(size,),
        volumes=(4,),
        seeds=(0,),
        measure_speedup=False,
    )
    done = run_study(cut, tmp_path / "study", way="singles", cache=tmp_path / "cache")
    assert (done.ran, done.failed) == (1, {})
    (scores,) = load_results(tmp_path / "study")
    assert set(scores["test"]) == set(ABILITY_NAMES)
    counts = scores["run"]["counts"]
    assert counts["records"] == 40
    assert counts["rejected"] > 0, "the sample data hold repeats, which are counted"
    assert counts["too_long_test"] > 0
    assert (tmp_path / "study" / "rejected.jsonl").is_file()
    # The ten sets were written in DoIT's schema, and the study read these files through the ordinary loader.
    written = sorted((tmp_path / "cache" / "sources").glob("sample_sets-*/*/train.jsonl"))
    assert [path.parent.name for path in written] == sorted(ABILITY_NAMES)
    # The published tokenizer: its pieces and four special tokens, padded.
    described = json.loads((tmp_path / "study" / "cells" / scores["cell"] / "run.json").read_text())
    assert described["shape"]["vocab_size"] == 49_984
