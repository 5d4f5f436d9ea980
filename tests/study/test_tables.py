"""Tables: what stands in CSV and JSON is what was counted and computed."""

import csv
import json
import math

import pytest

from dynamics.study import tables
from dynamics.study.curves import OVERALL, Bootstrap, analyze

from .synthetic_results import make_results

RESULTS = make_results(seeds=(0, 1), volumes=(0, 16, 64), sizes=("0.2m", "0.6m"))
GROWTHS = analyze(RESULTS, bootstrap=Bootstrap(draws=50))


def test_scores_have_a_row_for_every_ability_size_and_volume():
    rows = tables.score_rows(GROWTHS)
    assert len(rows) == 11 * 2 * 3
    assert {row["seeds"] for row in rows if row["volume"] == 16} == {2}
    assert {row["seeds"] for row in rows if row["volume"] == 0} == {1}
    for row in rows:
        assert row["score_low"] <= row["score"] <= row["score_high"]


def test_points_have_a_row_for_every_cell_and_ability():
    rows = tables.point_rows(GROWTHS)
    assert len([row for row in rows if row["ability"] != OVERALL]) == 10 * len(RESULTS)


def test_counts_are_added_up_over_cells():
    counts = {row["count"]: row for row in tables.count_rows(RESULTS)}
    assert counts["truncated"] == {"count": "truncated", "total": 3 * len(RESULTS), "largest": 3, "cells": len(RESULTS)}
    assert counts["unparsed answers (test)"]["total"] == 10 * len(RESULTS)


def test_the_budget_shows_what_each_volume_was_trained_for():
    rows = tables.budget_rows(RESULTS)
    assert [(row["size"], row["volume"], row["cells"]) for row in rows[:3]] == [
        ("0.2m", 0, 1),
        ("0.2m", 16, 2),
        ("0.2m", 64, 2),
    ]
    assert rows[1]["steps"] == [36, 36]


def test_waiting_is_weighed_by_training_time():
    made = [{"run": {"train_seconds": 1.0, "wait_share": 0.5}}, {"run": {"train_seconds": 3.0, "wait_share": 0.1}}]
    assert tables.wait_share(made) == pytest.approx(0.2)
    assert tables.wait_share([{"run": {"train_seconds": 0.0, "wait_share": 0.0}}]) is None
    compiling = [{"run": {"train_seconds": 11.0, "first_seconds": 10.0, "wait_share": 0.5}}, made[1]]
    assert tables.wait_share(compiling) == pytest.approx(0.2)  # the share is of the time after the first step


def test_csv_reads_back_and_leaves_missing_values_empty(tmp_path):
    tables.write_csv(tmp_path / "t.csv", [{"a": 0.1234567, "b": math.nan, "c": None, "d": "x,y"}])
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "0.123457", "b": "", "c": "", "d": "x,y"}]


def test_json_has_no_nan():
    assert json.dumps(tables.plain({"a": [math.nan, 1.0], "b": (math.inf,)})) == '{"a": [null, 1.0], "b": [null]}'


def test_a_notebook_table_escapes_its_text_and_drops_empty_columns():
    shown = tables.Table([{"name": "<b>", "none": None, "range": [1, 2]}])._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "none" not in shown
    assert "1 – 2" in shown


@pytest.mark.parametrize(
    ("names", "said"), [([], "none"), (["a"], "a"), (["a", "role_play", "c"], "a, role play and c")]
)
def test_names_are_listed_as_a_person_would(names, said):
    assert tables.named(names) == said
