"""Every file in configs/ builds, survives JSON, names its cells, and says in its docstring how to run it."""

import ast
import dataclasses
from pathlib import Path

import pytest

from dynamics import config
from dynamics.errors import UserError
from dynamics.study.grid import Study
from dynamics.study.run import Run

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def function_of(path):
    names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return next(name for name in ("study", "run") if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_and_survives_json(path):
    value = config.load(path, function=function_of(path))
    assert isinstance(value, Study | Run)
    assert config.from_json(config.to_json(value)) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_its_command_and_what_to_expect(path):
    words = ast.get_docstring(ast.parse(path.read_text()))
    command = "study run" if function_of(path) == "study" else "train"
    assert f"dynamics {command} configs/{path.name}" in words
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


def test_the_real_study_names_a_folder_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNAMICS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    study = config.load(FOLDER / "real_small.py", function="study")
    with pytest.raises(UserError, match="--data-dir"):
        study.cells()
    moved = study.map_runs(lambda run: dataclasses.replace(run, source=dataclasses.replace(run.source, data_dir="/no")))
    with pytest.raises(UserError, match="/no"):
        moved.cells()
