"""The notebook runs on a study's folder, shows figures and tables, and is committed without outputs."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from .synthetic_results import make_results, write_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "growth_curves.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_notebook_holds_no_logic_of_its_own():
    source = "\n".join(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code")
    assert "def " not in source
    assert "numpy" not in source
    assert len(source.splitlines()) < 40


def test_the_notebook_runs_on_a_study(tmp_path, monkeypatch):
    folder = write_study(tmp_path / "a study", make_results(seeds=(0, 1), volumes=(0, 16, 64), sizes=("0.2m", "0.6m")))
    monkeypatch.setenv("DYNAMICS_STUDY", str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    try:
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    except PermissionError as error:  # a sandbox without local sockets cannot start any kernel
        pytest.skip(f"no kernel can be started here: {error}")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 5
    assert sum("<table>" in data.get("text/html", "") for data in shown) >= 4
    assert any("14 finished cells" not in str(data) and "finished cells" in str(data) for data in shown)
