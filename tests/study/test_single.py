"""One run without a study: what it leaves in its folder, and scoring it again on records of yours."""

import json
import shutil

import numpy as np
import pytest

from dynamics.cli import main
from dynamics.data.sources import Files
from dynamics.errors import UserError
from dynamics.model.sharding import MeshShape
from dynamics.study.prepare import Workspace
from dynamics.study.run import Budget
from dynamics.study.single import score_run, train_run

from .tiny import RUN, changed


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory):
    """(folder of the run, its scores) of a run on files with a line that is no JSON and one that stands twice."""
    folder = tmp_path_factory.mktemp("single")
    (folder / "data" / "math").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        lines = [json.dumps({"instruction": f"{split} {number}?", "output": "7"}) for number in (0, 1, 2, 2)]
        (folder / "data" / "math" / f"{split}.jsonl").write_text("\n".join([*lines, "not json"]) + "\n")
    workspace.tokenizer(RUN).save(folder / "t.model")
    source = Files(data_dir=str(folder / "data"), on_bad_record="skip")
    run = changed(RUN, source=source, tokenizer=str(folder / "t.model"), base=None, budget=Budget(updates=2))
    return train_run(run, folder / "out", workspace, lambda fraction: None)


def test_a_run_writes_its_rejected_lines_and_counts_them(trained):
    folder, scores = trained
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 6
    assert [row["reason"][:8] for row in rejected[:2]] == ["has the ", "not JSON"]
    counts = scores["run"]["counts"]
    assert [counts[name] for name in ("rejected", "rejected_valid", "rejected_test")] == [2, 2, 2]


def test_rejected_lines_of_an_earlier_call_do_not_stay(workspace, tmp_path):
    (tmp_path / "rejected.jsonl").write_text("{}\n")
    assert workspace.write_rejected(tmp_path / "rejected.jsonl", [RUN]) == 0
    assert not (tmp_path / "rejected.jsonl").exists()


def test_a_finished_run_is_scored_again_with_the_same_result(trained, workspace):
    folder, scores = trained
    overall, num_rejected = score_run(folder, workspace)
    assert num_rejected == 2
    assert overall.abilities["math"].num_items == 3
    assert overall.abilities["math"].score == pytest.approx(sum(scores["test"]["math"]["scores"]) / 3)


def test_a_run_of_a_mesh_is_scored_on_it_and_on_another(workspace, tmp_path):
    run = changed(RUN, base=None, budget=Budget(updates=2), mesh=MeshShape(fsdp=2))
    folder, scores = train_run(run, tmp_path, workspace, lambda fraction: None)
    expected = {ability: sum(part["loss_sums"]) / sum(part["num_tokens"]) for ability, part in scores["test"].items()}
    for shape in (None, MeshShape(), MeshShape(data=2)):
        overall, _ = score_run(folder, workspace, shape=shape)
        assert {name: one.loss for name, one in overall.abilities.items()} == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_from_the_parameters_of_another_on_a_mesh(workspace, tmp_path):
    first, _ = train_run(changed(RUN, base=None, budget=Budget(updates=2)), tmp_path, workspace, lambda fraction: None)
    run = changed(RUN, base=str(first / "parameters"), volume=0)
    losses = []
    for mesh in (MeshShape(), MeshShape(fsdp=2)):
        _, scores = train_run(changed(run, mesh=mesh), tmp_path / str(mesh.fsdp), workspace, lambda fraction: None)
        losses.append([sum(part["loss_sums"]) for part in scores["test"].values()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_files_of_yours_are_scored_and_what_stands_twice_is_counted(trained, workspace, tmp_path):
    folder, _ = trained
    lines = [json.dumps({"instruction": f"new {number}?", "output": "7"}) + "\n" for number in (0, 1, 1)]
    for name in ("math_test.jsonl", "math_valid.jsonl"):
        (tmp_path / name).write_text("".join(lines))
    files = [tmp_path / "math_test.jsonl", tmp_path / "math_valid.jsonl"]
    overall, num_rejected = score_run(folder, workspace, files=files)
    assert (overall.abilities["math"].num_items, num_rejected) == (2, 4)
    (tmp_path / "math_test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"math_test\.jsonl is empty"):
        score_run(folder, workspace, files=files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told | {"tokenizer": "0123"}, r"was trained with tokenizer 0123, but .* put the old tokenizer"),
        (lambda told: told | {"identity": told["identity"] | {"source": "4567"}}, r"have changed since .*4567"),
        (lambda told: {"run": {"class": "dynamics.no:Run"}}, "which this version of dynamics does not have"),
        (lambda told: {}, "is not the folder of a run"),
    ],
)
def test_a_run_is_not_scored_with_what_it_was_not_made_with(trained, workspace, tmp_path, change, message):
    shutil.copytree(trained[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        score_run(tmp_path / "run", workspace)


def test_the_command_shows_everything_that_was_left_out(trained, workspace, capsys, monkeypatch):
    monkeypatch.setenv("DYNAMICS_CACHE", str(workspace.folder))
    assert main(["eval", str(trained[0])]) == 0
    out = capsys.readouterr().out
    assert "too long" in out
    assert "again): 2" in out
    assert main(["eval", str(trained[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == 2
