"""A study without second sources, mixtures or benchmarks keeps the numbers it had before the report knew of them."""

import json
from pathlib import Path

import pytest

from dynamics.study import tables
from dynamics.study.curves import Bootstrap, analyze
from dynamics.study.words import headlines

from .synthetic_results import TRUTH, make_results

GOLDEN = json.loads(Path(__file__).with_name("golden_report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def growths():
    """Two sizes, volumes, seeds, one set of a single ability, and another order."""
    truth = {name: TRUTH[name] for name in ("math", "creative_writing", "ethics")}
    settings = {"truth": truth, "seeds": (0, 1), "num_items": 40}
    made = make_results(**settings, volumes=(0, 16, 64, 256), sizes=("0.2m", "0.6m"))
    made += make_results(**settings, volumes=(64,), sizes=("0.2m",), training="math", seed=1)
    made += make_results(**settings, volumes=(16, 64), sizes=("0.2m",), order="blocked", seed=2)
    return analyze(made, bootstrap=Bootstrap(draws=50))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("results", tables.score_rows),
        ("sensitivity", tables.sensitivity_rows),
        ("laws", lambda growths: [row for row in tables.law_rows(growths) if row["variant"] == "interleaved"]),
        ("transfer", tables.transfer_rows),
    ],
)
def test_numbers_are_what_they_were(growths, name, made):
    columns, golden = GOLDEN[name]["columns"], GOLDEN[name]["rows"]
    rows = tables.plain(made(growths))
    assert len(rows) == len(golden)
    for row, known in zip(rows, golden, strict=True):
        for column, value in zip(columns, known, strict=True):
            assert row[column] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value)


def test_sentences_are_what_they_were(growths):
    assert [headlines(growth) for growth in growths] == GOLDEN["headlines"]
