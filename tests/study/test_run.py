"""A run as a value: its name, its course, its scores, and resuming it."""

import dataclasses
import json

import numpy as np
import pytest

from dynamics import config
from dynamics.data.mixture import Blocked
from dynamics.data.practice import Practice
from dynamics.data.sources import Files
from dynamics.errors import UserError
from dynamics.study.cell import Training, choose, plan_run
from dynamics.study.folder import CellFolder
from dynamics.study.grid import Cell, coordinates
from dynamics.study.identity import base_identity, cell_id, source_fingerprint
from dynamics.study.jobs import run_cell
from dynamics.study.prepare import Workspace
from dynamics.study.run import Base, Batch, Budget
from dynamics.train.log import read_log
from dynamics.train.loop import Interrupted

from .tiny import RUN, SIZE, changed


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"))


def as_cell(run):
    return Cell(id=cell_id(run), coords=coordinates(run), run=run)


def finished(run, workspace, path):
    """The scores of a run, and its folder."""
    cell = as_cell(run)
    folder = CellFolder(path / cell.id)
    end = run_cell(cell, folder, workspace, lambda fraction: None)
    assert end["state"] == "done", end
    return folder.scores(), folder


CHANGES = {
    "size": dataclasses.replace(SIZE, d_ff=48),
    "abilities": ("math", "code"),
    "volume": 3,
    "order": Blocked(first=("math",)),
    "vocab_size": 430,
    "batch": Batch(rows=4, length=256),
    "budget": Budget(updates=5),
    "optimizer": dataclasses.replace(RUN.optimizer, peak_lr=1e-3),
    "base": None,
    "evaluation": dataclasses.replace(RUN.evaluation, max_new_tokens=5),
    "evaluate_at": (1.0,),
    "choose": "last",
    "over_long": "truncate",
    "seed": 1,
    "slice_seed": 7,
    "source": Practice(seed=1, pool=8, num_valid=2, num_test=2, corpus_documents=120),
}


@pytest.mark.parametrize("field", CHANGES)
def test_the_name_of_a_cell_changes_with_every_setting_that_changes_a_number(field):
    assert cell_id(changed(RUN, **{field: CHANGES[field]})) != cell_id(RUN)


def test_the_name_of_a_cell_does_not_depend_on_where_data_lie_or_how_a_run_is_kept(tmp_path):
    def files(folder):
        (folder / "math").mkdir(parents=True)
        for split in ("train", "valid", "test"):
            record = {"messages": [{"role": "user", "content": split}, {"role": "assistant", "content": "1"}]}
            (folder / "math" / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
        return changed(RUN, source=Files(data_dir=str(folder)), checkpoint_every=3, keep_parameters=False)

    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert cell_id(first) == cell_id(changed(second, checkpoint_every=0, keep_parameters=True))
    (tmp_path / "b" / "math" / "train.jsonl").write_text('{"instruction": "2 + 2", "output": "4"}\n')
    source_fingerprint.cache_clear()
    assert cell_id(second) != cell_id(first)


def test_settings_that_came_later_leave_the_names_of_older_runs_as_they_were():
    assert cell_id(RUN) == "ccabbc2af328"  # of version 3; as without the fields recipe, benchmarks and documents
    assert config.fingerprint(base_identity(RUN)) == "5c08df214614"
    unused = changed(RUN, benchmark_at=(0.5,), choose="last")
    assert cell_id(unused) == cell_id(changed(unused, benchmark_at=(1.0,), choose_after=3.0))


def test_runs_that_differ_in_slice_or_seed_share_their_base_model():
    assert base_identity(changed(RUN, volume=1, seed=5, abilities=("math",))) == base_identity(RUN)
    assert base_identity(changed(RUN, base=Base(tokens=1501))) != base_identity(RUN)


def test_a_run_survives_json():
    assert config.from_json(config.to_json(RUN)) == RUN


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(epochs=1, updates=3), "give exactly one of epochs, updates, tokens"),
        (lambda: Budget(), "give exactly one"),
        (lambda: Batch(rows=3, micro=2), "rows a multiple of micro"),
        (lambda: Batch(documents=0), r"Batch\(documents=0\); give the conversations of a step, 1 or more, or None"),
        (lambda: changed(RUN, evaluate_at=(0.0, 1.0)), r"outside \(0, 1\]"),
        (lambda: changed(RUN, benchmark_at=(0.5, 2)), r"benchmark_at=\(0.5, 2\) holds a number outside \(0, 1\]"),
        (lambda: changed(RUN, choose_after=-1.0), "choose_after=-1.0; give epochs, or 0"),
        (lambda: changed(RUN, recipe="maximum"), "recipe takes .*Recipe"),
        (lambda: changed(RUN, size="0.3m").shape(), "no size is named '0.3m'; known: 0.1m, 0.2m, 0.6m"),
        (lambda: changed(RUN, abilities=("maths",)).ability_names(), "'maths'.*known: biology, history"),
        (lambda: changed(RUN, abilities=("math", "math")).ability_names(), "twice"),
        (lambda: changed(RUN, tokenizer="/nowhere/t.model") and cell_id(changed(RUN, tokenizer="/nowhere/t.model")),
         "cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_is_allowed(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("budget", "bound_by"),
    [
        (Budget(epochs=3), "epochs"),
        (Budget(updates=5), "updates"),
        (Budget(tokens=1500), "tokens"),
        (Budget(epochs=1, min_updates=9), "min_updates"),
    ],
)
def test_every_budget_is_resolved_to_steps_tokens_and_epochs(workspace, budget, bound_by):
    course, slices = plan_run(changed(RUN, budget=budget), workspace)
    assert course.bound_by == bound_by
    assert slices.num_records == course.documents_per_epoch == 20
    assert len(course.batches) == course.steps
    expected = {
        "epochs": course.epochs == budget.epochs,
        "updates": course.steps == budget.updates,
        "tokens": 0 <= course.tokens - (budget.tokens or 0) < 256,
        "min_updates": course.steps == budget.min_updates,
    }
    assert expected[bound_by]
    assert course.epoch_at(course.steps) == course.epochs


def test_a_longer_budget_begins_with_the_same_batches(workspace):
    short, _ = plan_run(changed(RUN, budget=Budget(updates=3)), workspace)
    long, _ = plan_run(changed(RUN, budget=Budget(updates=8)), workspace)
    for step in range(3):
        ours, theirs = short.batches.batch(step), long.batches.batch(step)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_comes_at_fractions_or_at_ends_of_epochs_and_always_at_the_end(workspace):
    course, _ = plan_run(changed(RUN, budget=Budget(epochs=3)), workspace)
    assert course.evaluation_steps((0.01,)) == (1, course.steps)
    assert course.evaluation_steps(()) == tuple(sorted({*course.batches.epoch_ends, course.steps}))
    assert len(course.evaluation_steps(())) == 3


def point(step, score, loss=1.0):
    return {"step": step, "epoch": float(step), "ability": "math", "score": score, "loss": loss}


def test_the_parameters_are_chosen_on_valid_and_ties_go_to_the_lower_loss_then_the_earlier():
    assert choose([point(1, 0.2), point(2, 0.5), point(3, 0.4)], "best_valid") == 2
    assert choose([point(1, 0.5, 2.0), point(2, 0.5, 1.0), point(3, 0.5, 1.0)], "best_valid") == 2
    assert choose([point(1, 0.9), point(2, 0.1)], "last") == 2


def test_a_finished_cell_holds_its_scores_counts_budget_and_parameters(workspace, tmp_path):
    scores, folder = finished(RUN, workspace, tmp_path)
    assert set(scores["test"]) == set(scores["valid"]) == set(RUN.source.abilities())
    assert all(len(test["scores"]) == 2 for test in scores["test"].values())
    assert scores["coords"]["params"] > 0
    assert scores["run"]["steps"] == 4
    counts = scores["run"]["counts"]
    assert counts["records"] == 20
    assert 0 < counts["distinct_rows"] <= 20
    assert {p["step"] for p in scores["curve"]} == {2, 4}
    described = json.loads((folder.path / "run.json").read_text())
    assert described["budget"]["bound_by"] == "updates"
    assert config.from_plain(described["run"]) == RUN
    assert [entry["step"] for entry in read_log(folder.path / "metrics.jsonl").entries] == [1, 2, 3, 4]
    assert (folder.path / "parameters" / "manifest.json").is_file()


def test_volume_0_scores_the_base_model(workspace, tmp_path):
    scores, _ = finished(changed(RUN, volume=0), workspace, tmp_path)
    assert scores["run"]["steps"] == scores["chosen"]["step"] == 0
    assert len(scores["curve"]) == 10


RESUMED = changed(RUN, checkpoint_every=1, budget=Budget(updates=6), evaluate_at=(0.34, 0.5, 1.0))


@pytest.fixture(scope="module")
def unbroken(workspace, tmp_path_factory):
    """RESUMED without a break: scores and folder."""
    return finished(RESUMED, workspace, tmp_path_factory.mktemp("whole"))


def interrupted_at_3(workspace, path):
    """The folder of RESUMED, stopped in its evaluation of step 3; the newest checkpoint is of step 2."""
    evaluate = Training.evaluate

    def stop_at_3(self, step, model):
        evaluate(self, step, model)
        if step == 3:
            raise Interrupted(2, step, True)

    cell = as_cell(RESUMED)
    folder = CellFolder(path / cell.id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "evaluate", stop_at_3)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, folder, workspace, lambda fraction: None)
    assert folder.state() == "to do"
    return folder


def flip_a_byte(folder):
    """In the largest file of arrays below the folder."""
    path = max((file for file in folder.rglob("*") if "arrays" in file.parts and file.is_file()),
               key=lambda file: file.stat().st_size)  # fmt: skip
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["checkpoints/00000002", "best/00000002"])
def test_damage_is_walked_past_to_the_same_numbers_and_counted(workspace, unbroken, tmp_path, damaged):
    folder = interrupted_at_3(workspace, tmp_path)
    flip_a_byte(folder.path / damaged)
    end = run_cell(as_cell(RESUMED), folder, workspace, lambda fraction: None)
    scores = folder.scores()
    assert all(scores[field] == unbroken[0][field] for field in ("chosen", "curve", "test", "valid"))
    assert scores["run"]["counts"]["damaged_checkpoints"] == 1
    assert scores["run"]["walked_back"] == end["notes"]
    assert "step 2" in end["notes"][0]
    assert unbroken[0]["run"]["counts"]["damaged_checkpoints"] == 0


def test_an_interrupted_run_ends_with_the_same_numbers(workspace, unbroken, tmp_path):
    run = RESUMED
    whole, whole_folder = unbroken
    folder = interrupted_at_3(workspace, tmp_path / "parts")
    parts, _ = finished(run, workspace, tmp_path / "parts")
    for field in ("chosen", "curve", "test", "valid"):
        assert parts[field] == whole[field]
    logs = [(f.path / "metrics.jsonl").read_bytes() for f in (whole_folder, folder)]
    assert logs[0] == logs[1]
    manifests = [json.loads((f.path / "parameters" / "manifest.json").read_text()) for f in (whole_folder, folder)]
    assert manifests[0]["arrays"] == manifests[1]["arrays"]
    assert not (folder.path / "checkpoints").exists()


def test_over_long_and_rejected_records_are_counted(workspace, tmp_path):
    (tmp_path / "data" / "math").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        lines = [
            json.dumps({"instruction": f"{split} {number}", "input": "", "output": "7 " * length})
            for number, length in enumerate((1, 2, 200, 3))
        ]
        (tmp_path / "data" / "math" / f"{split}.jsonl").write_text("\n".join([*lines, "not json"]) + "\n")
    source = Files(data_dir=str(tmp_path / "data"), on_bad_record="skip")
    workspace.tokenizer(RUN).save(tmp_path / "t.model")
    tokenizer = str(tmp_path / "t.model")
    run = changed(RUN, source=source, tokenizer=tokenizer, volume="full", over_long="truncate", base=None)
    with pytest.raises(UserError, match=r"has \d+ tokens, rows have 256"):
        workspace.pool(changed(run, over_long="error"))
    scores, _ = finished(run, workspace, tmp_path)
    counts = scores["run"]["counts"]
    assert (counts["records"], counts["truncated"], counts["rejected"], counts["rejected_test"]) == (4, 1, 1, 1)
    assert scores["coords"]["volume"] == 4
    assert workspace.write_rejected(tmp_path / "rejected.jsonl", [run]) == 3
    assert "not json" in (tmp_path / "rejected.jsonl").read_text()
