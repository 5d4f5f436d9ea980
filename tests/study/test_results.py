"""Results: files that are whole or not there, and flat rows."""

import json

import pytest

from dynamics.errors import UserError
from dynamics.study.folder import CellFolder, read_json, write_json
from dynamics.study.results import export, load_results, rows

SCORED = {"ids": ["a", "b"], "scores": [1.0, 0.0], "chance": [0.25, 0.25], "loss_sums": [2.0, 4.0],
          "num_tokens": [1, 2], "unparsed": 1}  # fmt: skip


def scores(cell, seed):
    coords = {"size": "tiny", "params": 10, "volume": 4, "abilities": "all", "seed": seed, "source": "practice",
              "order": "interleaved"}  # fmt: skip
    return {"cell": cell, "coords": coords, "chosen": {"step": 3, "rule": "last step"}, "curve": [],
            "test": {"math": SCORED}, "valid": {"math": SCORED},
            "run": {"steps": 3, "epochs": 1.5, "tokens": 99}}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    cells = [{"id": f"cell{seed}", "coords": scores("", seed)["coords"], "cost": 1.0} for seed in (2, 0, 1)]
    write_json(tmp_path / "study.json", {"name": "x", "cells": cells})
    for seed in (0, 2, 5):
        write_json(tmp_path / "cells" / f"cell{seed}" / "scores.json", scores(f"cell{seed}", seed))
    return tmp_path


def test_results_come_in_the_plans_order_without_unfinished_and_foreign_cells(folder):
    assert [found["cell"] for found in load_results(folder)] == ["cell2", "cell0"]


def test_scores_that_are_cut_short_or_of_another_cell_do_not_count(folder):
    cell = CellFolder(folder / "cells" / "cell0")
    assert cell.state() == "done"
    write_json(cell.scores_file, scores("cell9", 0))
    assert cell.state() == "to do"
    cell.scores_file.write_text(json.dumps(scores("cell0", 0))[:-1])
    assert cell.state() == "to do"


def test_flat_rows_hold_means_and_loss_per_token(folder):
    found = list(rows(load_results(folder)))
    assert len(found) == 2 * 2
    row = found[0]
    assert (row["cell"], row["split"], row["ability"], row["seed"]) == ("cell2", "valid", "math", 2)
    assert (row["score"], row["chance"], row["loss"], row["items"], row["unparsed"]) == (0.5, 0.25, 2.0, 2, 1)


def test_benchmarks_have_rows_of_their_own_with_the_step_they_were_read_at(folder):
    (cell, *_) = load_results(folder)
    entry = {
        "benchmark": "cmmlu",
        "shots": 5,
        "macro": 0.3,
        "chance_macro": 0.25,
        "num_items": 12,
        "step": 2,
        "epoch": 1.0,
    }
    (row,) = [row for row in rows([{**cell, "benchmarks": [entry]}]) if row["split"] == "benchmark"]
    assert (row["ability"], row["score"], row["items"], row["steps"]) == ("cmmlu 5-shot", 0.3, 12, 2)
    assert set(row) == set(next(rows([cell])))


def test_the_export_is_one_json_object_a_line(folder):
    path = export(load_results(folder), folder / "results.jsonl")
    assert [json.loads(line)["cell"] for line in path.read_text().splitlines()] == ["cell2"] * 2 + ["cell0"] * 2


def test_a_folder_that_is_no_studys_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no sound study\.json"):
        load_results(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
