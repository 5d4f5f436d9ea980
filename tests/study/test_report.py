"""The report: one page that needs nothing else, says everything that was counted, and works on part of a study."""

import html.parser
import json
import re

import pytest

from dynamics.errors import UserError
from dynamics.study import comparison_figures, figures, words
from dynamics.study.curves import Bootstrap, Interval, analyze
from dynamics.study.report import write_report

from .synthetic_results import TRUTH, make_results, make_summary

FEW = Bootstrap(draws=100)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Collects the resources that a page would load, its text and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.resources, self.links, self.ids, self.uses, self.text, self.open = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self._collect(tag, named)

    def handle_startendtag(self, tag, attrs):
        self._collect(tag, dict(attrs))

    def _collect(self, tag, named):
        if tag == "a":
            self.links.append(named.get("href"))
        elif tag == "use":
            self.uses.append(named.get("xlink:href"))
        else:
            self.resources += [named[key] for key in ("src", "href", "xlink:href", "srcset", "data") if key in named]
        if "id" in named:
            self.ids.append(named["id"])

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open, tag
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    results = make_results(seeds=(0, 1, 2))
    path = write_report(results, make_summary(results), tmp_path_factory.mktemp("report"), bootstrap=FEW)
    return path, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """One size, one seed for most points, one failed cell, and no summary but the plan."""
    truth = {name: TRUTH[name] for name in ("math", "ethics")}
    results = make_results(truth=truth, seeds=(0,), sizes=("0.2m",), volumes=(16, 64, 256))
    failed = {**results[-1], "state": "failed", "reason": "loss is not finite at step 12"}
    failed = {key: failed[key] for key in ("cell", "coords", "state", "reason")}
    summary = {"name": "<script>alert(1)</script>", "cells": make_summary(results[:-1], failed=[failed])["cells"]}
    path = write_report(results[:-1], summary, tmp_path_factory.mktemp("partial"), bootstrap=FEW)
    return path.read_text(encoding="utf-8")


def test_the_page_asks_the_network_for_nothing(complete):
    _, text = complete
    page = Page(text)
    assert page.open == []
    assert all(resource.startswith("data:") for resource in page.resources), page.resources
    assert not re.search(r"@import|url\((?!#)|<script", text)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http" not in without_namespaces


def test_every_link_and_every_figure_is_there(complete):
    path, text = complete
    page = Page(text)
    local = [link for link in page.links if link]
    assert {"results.csv", "sensitivity.csv", "report.json"} <= set(local)
    assert all((path.parent / link).is_file() for link in local)
    assert text.count("<svg") == 5
    for name in ("growth", "loss", "size", "overall", "sensitivity"):
        assert (path.parent / "figures" / f"{name}.png").stat().st_size > 5_000
    assert path.stat().st_size < 3_000_000


def test_ids_are_unique_and_every_reference_inside_a_figure_is_met(complete):
    page = Page(complete[1])
    assert len(page.ids) == len(set(page.ids))
    assert {use.removeprefix("#") for use in page.uses} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", complete[1])) <= set(page.ids)


def test_every_count_is_shown(complete):
    said = Page(complete[1]).words
    for line in (
        "rejected 78",
        "truncated 117",
        "dropped 195",
        "unparsed answers (test) 390",
        "base corpus rejected 17",
    ):
        assert line in said, line
    assert "39 finished of 39" in said
    assert "2.31 times the speed of one after another" in said
    assert "5 min 12 s" in said
    assert "0.4% of training time" in said


def test_the_findings_name_the_designed_abilities(complete):
    said = Page(complete[1]).words
    assert re.search(r"Saturates: [^.]*creative writing \(early at v≈(64|256)\)", said)
    assert "Needs size (data helps only the larger models): math" in said
    assert re.search(r"Resists [^.]*ethics", said)


def test_the_machine_readable_report_agrees_with_the_tables(complete):
    data = json.loads((complete[0].parent / "report.json").read_text(encoding="utf-8"))
    lines = (complete[0].parent / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(data["results"]) == len(lines) - 1 == 11 * 3 * 5
    assert data["cells"]["done"] == 39


def test_a_partial_study_says_what_is_missing_and_why(partial):
    said = Page(partial).words
    assert "2 finished of 3, 1 failed" in said
    assert "loss is not finite at step 12" in said
    assert "1 of 3 cells have no result" in said
    assert "One seed only" in said
    assert "One size only" in said
    assert "Score against size" not in said
    assert "not recorded" in said
    assert "speed-up not measured" in said


def test_damaged_checkpoints_are_shown_with_their_reasons(tmp_path):
    truth = {name: TRUTH[name] for name in ("math", "ethics")}
    results = make_results(truth=truth, seeds=(0,), sizes=("0.2m",), volumes=(16, 64, 256))
    results[-1]["run"]["walked_back"] = ["step 40: <embedding> does not match its digest"]
    page = write_report(results, {}, tmp_path, bootstrap=FEW).read_text(encoding="utf-8")
    assert "Damaged checkpoints" in page
    assert "step 40: &lt;embedding&gt; does not match" in page


def test_a_figure_depends_on_the_results_alone():
    results = make_results(seeds=(0, 1), sizes=("0.2m",), volumes=(16, 64))
    first, second = (
        figures.svg(comparison_figures.sensitivity_figure(analyze(made, bootstrap=FEW)[0]), "x")
        for made in (results, results[::-1])
    )
    assert first == second


def test_volumes_that_end_at_one_score_have_a_label_each():
    results = make_results(seeds=(0,), sizes=("0.2m", "0.6m"), volumes=(16, 64))
    same = {cell["coords"]["size"]: cell["test"] for cell in results}
    growth = analyze([{**cell, "test": same[cell["coords"]["size"]]} for cell in results], bootstrap=FEW)[0]
    labels = [text.get_text() for axes in figures.overall_figure(growth).axes for text in axes.texts]
    assert sorted(labels) == ["16", "64"]


def test_text_from_a_study_is_escaped(partial):
    assert "&lt;script&gt;alert(1)" in partial
    assert "<script" not in partial


def test_a_study_whose_base_models_alone_are_finished_has_a_page(tmp_path):
    bases = [result for result in make_results(num_items=10) if result["coords"]["volume"] == 0]
    page = write_report(bases, {"name": "begun"}, tmp_path, bootstrap=FEW).read_text(encoding="utf-8")
    assert "clearly above chance at 0 records" in page


def test_nothing_finished_is_an_error_not_an_empty_page(tmp_path):
    with pytest.raises(UserError, match="0 results given"):
        write_report([], {}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "not recorded"), (2.34, "2.3 s"), (312.5, "5 min 12 s"), (5400, "1 h 30 min")]
)
def test_durations_read_well(seconds, said):
    assert words.duration(seconds) == said


def test_the_interval_of_a_score_stays_within_what_a_score_can_be():
    assert (
        words.interval_text(Interval(value=0.972, low=0.937, high=1.002)).replace("\xa0", " ") == "97.2% [93.7, 100.0]"
    )
    assert words.interval_text(Interval(value=0.006, low=-0.004, high=0.019)).replace("\xa0", " ") == "0.6% [0.0, 1.9]"


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (1234567, "1,234,567"), (0.12345, "0.123"), (3.0, "3"), ("a", "a")]
)
def test_numbers_read_well(value, said):
    assert words.number(value) == said
