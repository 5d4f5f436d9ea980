"""Runs that start after another run: what they start from, who trains it, and what a study makes of it."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dynamics import config
from dynamics.data.template import CHATML
from dynamics.errors import UserError
from dynamics.model.llama import LlamaConfig, abstract
from dynamics.study.base import first_model
from dynamics.study.execution import run_study
from dynamics.study.folder import CellFolder, StudyFolder
from dynamics.study.grid import Study
from dynamics.study.identity import cell_id, start_identity
from dynamics.study.jobs import make_stage, needed_jobs, run_stage
from dynamics.study.prepare import Workspace
from dynamics.study.run import After, Budget
from dynamics.study.single import train_run
from dynamics.study.stage import adopt, is_ready, stage_cell, stage_folder
from dynamics.train.checkpoint import load_params, read_manifest

from .tiny import RUN, SIZE, STUDY, changed

FIRST = changed(RUN, budget=Budget(updates=3))
SECOND = changed(RUN, base=After(run=FIRST), budget=Budget(updates=2), volume=1)
AFTER = Study(name="after", run=SECOND, base_cells=True, measure_speedup=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"), workers=1)


@pytest.fixture(scope="module")
def first(workspace):
    """The first stage, trained in the cache."""
    make_stage(SECOND, workspace, lambda fraction: None)
    return stage_folder(FIRST, workspace)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def test_runs_keep_the_names_that_they_had():
    names = ["e3c9a57accbf", "cb69cd6ce8f6", "d4b1dc83152e", "ccabbc2af328", "a75ec90e9d85"]
    assert [cell.id for cell in STUDY.cells()] == names
    assert all({"objective", "after"}.isdisjoint(cell.coords) for cell in STUDY.cells())


def test_a_run_is_named_by_the_run_it_starts_after():
    assert cell_id(SECOND) != cell_id(changed(SECOND, base=RUN.base))
    other = changed(SECOND, base=After(run=changed(FIRST, seed=1)))
    assert cell_id(SECOND) != cell_id(other)
    assert start_identity(SECOND) != start_identity(other)
    longer = changed(SECOND, budget=Budget(updates=9), seed=4)
    assert start_identity(SECOND) == start_identity(longer), "what is trained later decides no first parameter"
    kept = changed(SECOND, base=After(run=changed(FIRST, checkpoint_every=7)))
    assert cell_id(SECOND) == cell_id(kept)
    assert config.from_json(config.to_json(SECOND)) == SECOND


def test_another_size_template_or_tokenizer_is_refused_with_both_names(tmp_path):
    wider = dataclasses.replace(SIZE, name="wider", d_ff=48)
    with pytest.raises(UserError, match=r"'wider' starts after one of size 'tiny', whose d_ff is 32 and not 48"):
        cell_id(changed(SECOND, size=wider))
    with pytest.raises(UserError, match=r"template 'chatml' starts after one with template 'doit'"):
        cell_id(changed(SECOND, template=CHATML))
    workspace = Workspace(tmp_path, workers=1)
    file = tmp_path / "other.model"
    file.write_bytes(workspace.tokenizer(changed(RUN, vocab_size=450)).model)
    with pytest.raises(UserError, match=r"other.model' starts after one with tokenizer 'trained on its source'"):
        cell_id(changed(SECOND, tokenizer=str(file)))


def test_a_run_starts_from_the_chosen_parameters(workspace, first):
    shape = workspace.model_shape(SECOND)
    assert isinstance(shape, LlamaConfig)
    model = first_model(SECOND, shape, workspace, lambda fraction: None, None)
    kept, _ = load_params(first.path / "parameters", model)
    for mine, theirs in zip(leaves(model), leaves(kept), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert workspace.tokenizer(SECOND).fingerprint == workspace.tokenizer(FIRST).fingerprint


def test_a_study_trains_the_first_stage_once_and_scores_it_at_volume_0(workspace, first, tmp_path):
    grid = dataclasses.replace(AFTER, plus=(Study(name="first", run=FIRST, base_cells=False),))
    done = run_study(grid, tmp_path, way="singles", cache=workspace.folder)
    assert (done.failed, done.ran, done.cells) == ({}, 2, 3)
    scores = {cell.coords["volume"]: StudyFolder(tmp_path).cell(cell.id).scores() for cell in grid.cells()}
    untrained, trained, sft = scores[0], scores[1], scores[2]
    assert untrained["test"] == sft["test"], "volume 0 is what the first stage ended with"
    assert (untrained["coords"]["after"], sft["coords"]["after"]) == ("sft 2 interleaved", "base of 1500 tokens")
    assert sft["run"]["adopted"] == str(first.path)
    assert trained["test"] != untrained["test"]
    assert (StudyFolder(tmp_path).cell(cell_id(FIRST)).path / "parameters").is_dir()


def test_a_finished_cell_of_the_study_is_not_trained_again_for_those_after_it(workspace, tmp_path):
    other = changed(FIRST, seed=5)
    home = StudyFolder(tmp_path)
    plain = Study(name="first", run=other, base_cells=False, measure_speedup=False)
    run_study(plain, tmp_path, way="singles", cache=workspace.folder)
    after = changed(SECOND, base=After(run=other))
    (job,) = needed_jobs(after, workspace, home)
    assert (job.kind, job.id) == ("stage", f"stage-{cell_id(other)}")
    end = run_stage(stage_cell(other, workspace), workspace, lambda fraction: None, found=home.cell(cell_id(other)))
    assert (end["state"], end["ran"]) == ("done", False)
    assert is_ready(other, workspace)
    assert needed_jobs(after, workspace, home) == []


def test_a_damaged_first_stage_is_not_taken_but_told_and_trained_again(workspace, tmp_path, capsys):
    stage = changed(FIRST, seed=6)
    after, cell = changed(SECOND, base=After(run=stage)), stage_cell(stage, workspace)
    make_stage(after, workspace, lambda fraction: None)
    folder = stage_folder(stage, workspace)
    written = read_manifest(folder.path / "parameters").arrays
    largest = max((folder.path / "parameters" / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    home = CellFolder(tmp_path / cell.id)
    home.path.mkdir()
    assert not adopt(cell, home, folder)
    assert f"the finished run in {folder.path} is not taken" in capsys.readouterr().err
    make_stage(after, workspace, lambda fraction: None)
    told = capsys.readouterr().err
    assert (f"damaged-1-{cell.id} and made anew" in told, "do not match their digest" in told) == (True, True)
    assert read_manifest(folder.path / "parameters").arrays == written
    for left in ("checkpoints", "best"):
        (home.path / left / "00000001").mkdir(parents=True)
    assert adopt(cell, home, folder)
    assert {path.name for path in home.path.iterdir()} == {"run.json", "metrics.jsonl", "parameters", "scores.json"}


def test_chains_need_their_base_model_first(tmp_path):
    workspace = Workspace(tmp_path, workers=1)
    third = changed(SECOND, base=After(run=SECOND))
    jobs = needed_jobs(third, workspace, StudyFolder(tmp_path))
    assert [job.kind for job in jobs] == ["base", "stage", "stage"]
    assert [job.needs for job in jobs] == [None, jobs[0].id, jobs[1].id]


def test_sizes_and_seeds_are_those_of_the_first_stage_too():
    wider = dataclasses.replace(SIZE, name="wider", d_ff=48)
    study = dataclasses.replace(AFTER, sizes=(SIZE, wider), seeds=(0, 1))
    for cell in study.cells():
        base = cell.run.base
        assert isinstance(base, After)
        assert (base.run.size, base.run.seed) == (cell.run.size, cell.run.seed)
    assert [cell.coords["volume"] for cell in study.cells()].count(0) == 4, "one for each size and seed"
    moved = study.map_runs(lambda run: changed(run, over_long="drop"))
    assert all(cell.run.base.run.over_long == "drop" for cell in moved.cells())


def test_bases_are_an_axis(workspace):
    study = dataclasses.replace(AFTER, bases=(RUN.base, After(run=FIRST)), run=changed(SECOND, base=None))
    names = [cell.coords["after"] for cell in study.cells()]
    assert names == ["base of 1500 tokens", "sft 2 interleaved"] * 2
    assert config.from_json(config.to_json(study)) == study


def test_a_failed_first_stage_fails_its_cells_with_its_reason(workspace, tmp_path):
    broken = changed(FIRST, seed=7)
    (stage_folder(broken, workspace).path / "metrics.jsonl").mkdir(parents=True)  # so its log cannot be written
    study = dataclasses.replace(AFTER, run=changed(SECOND, base=After(run=broken)), base_cells=False)
    done = run_study(study, tmp_path, way="singles", cache=workspace.folder)
    (reason,) = done.failed.values()
    assert reason.startswith("the run it starts after failed: cannot write the log ")


def test_train_makes_what_is_missing_first_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "cache", workers=1)
    stage = changed(FIRST, checkpoint_every=1, budget=Budget(updates=4), seed=3)
    run = changed(SECOND, base=After(run=stage))
    from dynamics.study import cell as cells

    whole = cells.Training.note

    def killed(self, step):
        whole(self, step)
        if step == 3 and self.cell.id == cell_id(stage):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cells.Training, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "runs", workspace, lambda fraction: None)
    assert not is_ready(stage, workspace)
    monkeypatch.setattr(cells.Training, "note", whole)
    _, scores = train_run(run, tmp_path / "runs", workspace, lambda fraction: None)
    steps = [line for line in (stage_folder(stage, workspace).path / "metrics.jsonl").read_text().splitlines() if line]
    assert is_ready(stage, workspace)
    assert len(steps) == 4
    assert scores["run"]["steps"] == 2


_KILLED = """
import os, signal, sys
from dynamics.study import cell
from dynamics.study.prepare import Workspace
from dynamics.study.identity import cell_id
from dynamics.study.single import train_run
from tests.study.test_after import KILLED_AT_3, AFTER_IT

whole = cell.Training.note

def note(self, step):
    if step == 3 and self.cell.id == cell_id(KILLED_AT_3):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, step)

cell.Training.note = note
train_run(AFTER_IT, sys.argv[1], Workspace(sys.argv[2], workers=1), lambda fraction: None)
"""
KILLED_AT_3 = changed(FIRST, checkpoint_every=1, budget=Budget(updates=4), seed=9)
AFTER_IT = changed(SECOND, base=After(run=KILLED_AT_3))


@pytest.mark.slow
def test_kill_9_in_the_first_stage_loses_no_step_and_changes_no_bit(workspace, tmp_path):
    root = Path(__file__).parents[2]
    script = [sys.executable, "-c", _KILLED, str(tmp_path / "runs"), str(tmp_path / "cache")]
    assert subprocess.run(script, cwd=root, check=False).returncode == -signal.SIGKILL
    broken = Workspace(tmp_path / "cache", workers=1)
    assert (stage_folder(KILLED_AT_3, broken).path / "checkpoints").is_dir()
    _, scores = train_run(AFTER_IT, tmp_path / "runs", broken, lambda fraction: None)
    _, whole = train_run(AFTER_IT, tmp_path / "whole", workspace, lambda fraction: None)
    for split in ("valid", "test"):
        assert scores[split] == whole[split]
    folders = [stage_folder(KILLED_AT_3, one).path / "parameters" for one in (broken, workspace)]
    shape = workspace.model_shape(AFTER_IT)
    for mine, theirs in zip(*(leaves(load_params(one, abstract(shape))[0]) for one in folders), strict=True):
        np.testing.assert_array_equal(mine, theirs)
