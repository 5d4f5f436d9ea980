"""A run of low-rank adapters: what it keeps, and that it resumes like any other."""

import dataclasses
import shutil

import numpy as np
import pytest

from dynamics import tree
from dynamics.model.llama import abstract
from dynamics.model.lora import Lora
from dynamics.study.base import first_model
from dynamics.study.cell import Training
from dynamics.study.folder import CellFolder
from dynamics.study.grid import Cell, coordinates
from dynamics.study.identity import cell_id
from dynamics.study.prepare import Workspace
from dynamics.study.run import Budget
from dynamics.study.single import score_run, train_run
from dynamics.train.checkpoint import Checkpointer, load_params, read_manifest
from dynamics.train.log import Log
from dynamics.train.loop import train
from dynamics.train.step import make_step

from .tiny import RUN, changed

ADAPTED = changed(
    RUN, base=None, adapter=Lora(rank=2, alpha=4.0, base_dtype="bfloat16"), budget=Budget(updates=6),
    evaluate_at=(0.5, 1.0), choose="last", checkpoint_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory):
    return train_run(ADAPTED, tmp_path_factory.mktemp("out"), workspace, lambda fraction: None)


def test_the_adapters_are_kept_and_a_plain_model_with_them_added(trained, workspace):
    folder, scores = trained
    assert {name.split("/")[0] for name in read_manifest(folder / "adapters").arrays} == set(ADAPTED.adapter.targets)
    shape = workspace.model_shape(ADAPTED)
    merged, _ = load_params(folder / "parameters", abstract(shape))
    first = first_model(ADAPTED, shape, workspace, lambda fraction: None, None)
    before, after = tree.named_leaves(first), tree.named_leaves(merged)
    # Embedding and norms are no targets; the frozen matrices were rounded to bfloat16 once, by 2^-9 at most.
    np.testing.assert_array_equal(before["blocks/attention_norm"], after["blocks/attention_norm"])
    np.testing.assert_allclose(before["embedding"], after["embedding"], rtol=2**-8)
    assert np.abs(before["blocks/query"] - after["blocks/query"]).max() > 2**-8 * np.abs(before["blocks/query"]).max()
    # Merged in float32: the same scores, but for the order of the products.
    overall, _ = score_run(folder, workspace)
    losses = {name: sum(found["loss_sums"]) / sum(found["num_tokens"]) for name, found in scores["test"].items()}
    assert {name: overall.abilities[name].loss for name in losses} == pytest.approx(losses, rel=1e-2)


def test_an_interrupted_run_of_adapters_ends_as_an_unbroken_one(trained, workspace, tmp_path):
    run = dataclasses.replace(ADAPTED, keep_parameters=True)
    cell = Cell(id=cell_id(run), coords=coordinates(run), run=run)
    training = Training(cell, CellFolder(tmp_path / cell.id), workspace, lambda fraction: None)
    home = training.folder.path
    step = make_step(run.objective, run.optimizer, training.mesh)
    with Log(home / "metrics.jsonl") as log, Checkpointer(home / "checkpoints", config=cell.id) as checkpointer:
        train(
            training.start(), training.batches(), step, until=4, hooks=training.hooks(), checkpointer=checkpointer,
            save_every=1, meta=training.meta, log=log,
        )  # fmt: skip
        names = read_manifest(home / "checkpoints" / "00000004").arrays
    assert not any(name.startswith("frozen") for name in names), "no checkpoint holds what never changes"
    folder, scores = train_run(ADAPTED, tmp_path, workspace, lambda fraction: None)
    assert folder == home
    assert (home / "metrics.jsonl").read_bytes() == (trained[0] / "metrics.jsonl").read_bytes()
    assert scores["test"] == trained[1]["test"]
    for name in ("adapters", "parameters"):
        mine, theirs = (read_manifest(where / name).arrays for where in (home, trained[0]))
        assert mine == theirs
    shutil.rmtree(home)
