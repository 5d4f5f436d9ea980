"""References of preference runs: computed once, kept, gone on with; and runs from end to end that learn from pairs."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dynamics import config
from dynamics.data.curriculum import Sorted
from dynamics.data.difficulty import Length
from dynamics.data.pair_files import PairFiles
from dynamics.data.replies import Replies
from dynamics.data.template import CHATML
from dynamics.eval.preferences import reply_scores, reply_tokens
from dynamics.losses.dpo import DPO
from dynamics.losses.kto import KTO
from dynamics.losses.simpo import SimPO
from dynamics.model.lora import Lora
from dynamics.model.sharding import MeshShape
from dynamics.study.base import first_model, run_mesh
from dynamics.study.cell import Training
from dynamics.study.choice import choose
from dynamics.study.folder import CellFolder
from dynamics.study.grid import Cell, coordinates
from dynamics.study.identity import cell_id
from dynamics.study.jobs import run_cell
from dynamics.study.known_difficulty import known_scores
from dynamics.study.prepare import Workspace, prepare_runs
from dynamics.study.references import pair_batches, references, references_folder
from dynamics.study.report import write_report
from dynamics.study.run import Batch, Budget
from dynamics.train.log import read_log
from dynamics.train.loop import Interrupted

from .pair_runs import pair_run, write_pairs
from .tiny import changed


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"), workers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pair_run(write_pairs(tmp_path_factory.mktemp("pairs")))


@dataclasses.dataclass
class Model:
    """Gives the model that a run starts from, and counts how often it was asked to."""

    run: object
    workspace: Workspace
    calls: int = 0

    def __call__(self):
        self.calls += 1
        shape = self.workspace.model_shape(self.run)
        return first_model(self.run, shape, self.workspace, lambda fraction: None, run_mesh(self.run))


def fresh(workspace, tmp_path):
    """A workspace with the tokenizer and the stores of another one, and no references."""
    empty = Workspace(tmp_path / "cache", workers=1)
    for name in ("tokenizers", "tokens"):
        (empty.folder / name).symlink_to(workspace.folder / name)
    return empty


@pytest.fixture(scope="module")
def whole(run, workspace):
    """The references of all train pairs, and their store."""
    store = workspace.pair_store(run, "train")
    return store, references(run, store, store.keys, workspace, Model(run, workspace))


def test_cached_references_are_those_of_the_model(run, workspace, whole):
    store, _ = whole
    asked = Model(run, workspace)
    cached = references(run, store, store.keys, workspace, asked)
    assert asked.calls == 0
    batches = pair_batches(run, store, np.arange(len(store))[::-1])  # other neighbors than in the cached pass
    live, tokens = reply_scores(asked(), batches)
    np.testing.assert_allclose(cached, live[::-1], rtol=1e-6)
    assert (cached < 0).all()
    assert (tokens > 0).all()


def test_a_larger_slice_computes_only_what_is_missing(run, workspace, whole, tmp_path):
    store, all_of_them = whole
    here = fresh(workspace, tmp_path)
    asked = Model(run, here)
    few = references(run, store, store.keys[:5], here, asked)
    assert np.isfinite(few).all(axis=1).tolist() == [True] * 5 + [False] * (len(store) - 5)
    seen = []
    more = references(run, store, store.keys, here, asked, None, lambda progress: seen.append(progress.done))
    assert asked.calls == 2
    assert (seen[0] > 5, seen[-1]) == (True, len(store))
    np.testing.assert_array_equal(more[:5], few[:5])
    np.testing.assert_allclose(more, all_of_them, rtol=1e-6)


def test_what_an_earlier_slice_leaves_out_may_pack_more_tightly(run, tmp_path):
    lengths = [1, 12] * 12  # what the long ones train on is more, two to a row, than of rows with short ones between
    rows = [
        {"prompt": f"give me {number}", "chosen": "yes " * length, "rejected": "no " * length}
        for number, length in enumerate(lengths)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    source = PairFiles(data_dir=str(tmp_path), files=(("politeness", "pairs.json"),), valid_share=0.1, test_share=0.1)
    uneven = changed(run, source=source, vocab_size=372)
    here = Workspace(tmp_path / "cache", workers=1)
    store = here.pair_store(uneven, "train")
    short = [key for key, tokens in zip(store.keys, store.num_tokens, strict=True) if tokens < 30]
    asked = Model(uneven, here)
    earlier = references(uneven, store, short, here, asked)
    found = references(uneven, store, store.keys, here, asked)
    assert asked.calls == 2
    assert np.isfinite(found).all()
    kept = store.indices(short)
    np.testing.assert_array_equal(found[kept], earlier[kept])


def test_an_interrupted_pass_goes_on_to_the_same_bits(run, workspace, whole, tmp_path):
    store, unbroken = whole
    here, elsewhere = fresh(workspace, tmp_path / "broken"), fresh(workspace, tmp_path / "unbroken")
    small = changed(run, batch=Batch(rows=1, length=128))
    expected = references(small, store, store.keys, elsewhere, Model(small, elsewhere))

    def stop(progress):
        if progress.done >= len(store) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        references(small, store, store.keys, here, Model(small, here), None, stop, save_every=0)
    parts = sorted(references_folder(small, store, here).glob("part-*.npz"))
    assert len(parts) > 1
    found = []
    rest = references(small, store, store.keys, here, Model(small, here), None, lambda p: found.append(p.found))
    assert 0 < found[0] < len(store)
    np.testing.assert_array_equal(rest, expected)
    np.testing.assert_allclose(rest, unbroken, rtol=1e-6)


def test_a_damaged_part_is_told_and_computed_again(run, workspace, whole, tmp_path, capsys):
    store, _ = whole
    here = fresh(workspace, tmp_path)
    first = references(run, store, store.keys, here, Model(run, here), save_every=0)
    (part, *_) = sorted(references_folder(run, store, here).glob("part-*.npz"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    asked = Model(run, here)
    np.testing.assert_array_equal(references(run, store, store.keys, here, asked), first)
    assert asked.calls == 1
    assert f"damaged-1-{part.name}" in capsys.readouterr().err
    assert references(run, store, store.keys, here, asked).shape == first.shape
    assert asked.calls == 1


def test_of_two_at_once_one_computes_and_the_other_waits(run, workspace, whole, tmp_path):
    store, expected = whole
    here = fresh(workspace, tmp_path)
    asked, found = Model(run, here), []
    both = [
        threading.Thread(target=lambda: found.append(references(run, store, store.keys, here, asked))) for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert asked.calls == 1
    for one in found:
        np.testing.assert_array_equal(one, expected)


CHANGES = {
    "weights": lambda run, _: changed(run, seed=1),
    "data": lambda run, folder: changed(run, source=write_pairs(folder, closing="madam")),
    "template": lambda run, _: changed(run, template=CHATML),
    "length": lambda run, _: changed(run, batch=dataclasses.replace(run.batch, length=256)),
    "cut": lambda run, _: changed(run, replies=Replies(max_length=60)),
    "layout": lambda run, _: changed(run, replies=Replies(shared_prompt=False)),
    "frozen type": lambda run, _: changed(run, adapter=Lora(rank=2, alpha=2.0, base_dtype="bfloat16")),
    "objective": lambda run, _: changed(run, objective=KTO()),
}


def key_of(run, workspace):
    store = workspace.pair_store(run, "train")
    return references_folder(run, store, workspace).name


@pytest.mark.parametrize("field", CHANGES)
def test_references_are_not_those_of_other_weights_data_or_lengths(run, workspace, tmp_path, field):
    other = CHANGES[field](changed(run, over_long="truncate"), tmp_path / "other")
    assert key_of(other, workspace) != key_of(changed(run, over_long="truncate"), workspace)


def test_runs_that_only_learn_otherwise_share_their_references(run, workspace):
    for other in (
        changed(run, volume=4),
        changed(run, objective=DPO(beta=0.5)),
        changed(run, objective=SimPO(beta=2.0, gamma=1.0)),
        changed(run, adapter=Lora(rank=2, alpha=2.0)),
        changed(run, slice_seed=3, budget=Budget(epochs=1), mesh=MeshShape(data=2)),
    ):
        assert key_of(other, workspace) == key_of(run, workspace)


def test_on_a_mesh_the_references_are_the_same(run, workspace, whole, tmp_path):
    store, expected = whole
    spread = changed(run, mesh=MeshShape(fsdp=2, data=2))
    here = fresh(workspace, tmp_path)
    found = references(spread, store, store.keys, here, Model(spread, here), run_mesh(spread))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_kto_reads_beside_a_pair_changes_neither_the_pairs_nor_their_lengths(run, workspace):
    stores, told = [], []
    for objective in (DPO(), KTO()):
        read = changed(run, objective=objective)
        store = workspace.pool(read).store
        orders = [Sorted(by=Length(of="reply")), Sorted(by=Length(of="all"))]
        stores.append(store)
        told.append([known_scores(changed(read, order=order), store.keys, workspace) for order in orders])
    assert stores[0].keys == stores[1].keys
    assert (stores[1].num_tokens > stores[0].num_tokens).all()
    lengths = (stores[0].num_trained, stores[0].num_tokens)
    expected = [dict(zip(stores[0].keys, each.tolist(), strict=True)) for each in lengths]
    assert told[0] == told[1] == expected


def test_kto_reads_splits_without_a_reply_to_another_prompt(tmp_path):
    """One valid pair, and test pairs that ask the same: there is no other prompt, and the reference point is 0."""
    rows = {"train": [(f"ask {n}", n) for n in range(6)], "valid": [("a", 7)], "test": [("b", 8), ("b", 9)]}
    for split, asked in rows.items():
        pairs = [{"prompt": prompt, "chosen": f"yes {name}", "rejected": f"no {name}"} for prompt, name in asked]
        (tmp_path / f"p_{split}.json").write_text(json.dumps(pairs), encoding="utf-8")
    source = PairFiles(data_dir=str(tmp_path), files=(("politeness", "p_{split}.json"),))
    here = Workspace(tmp_path / "cache", workers=1)
    run = changed(pair_run(source), objective=KTO(), volume=4, vocab_size=366)
    for split, others in (("train", True), ("test", False)):
        store = here.pair_store(run, split)
        assert store.branch_lengths[:, 3].any() == others
        assert pair_batches(run, store, np.arange(2)).batch(0)["reference"].shape[2] == 3
    store = here.pair_store(run, "valid")
    found = references(run, store, store.keys, here, Model(run, here))
    assert (found < 0).tolist() == [[True, True, False]]
    tokens = reply_tokens(store, np.arange(1), sides=3)
    values = run.objective.of_pairs(found - 1, found, tokens, np.ones(1, np.float32))
    assert np.isfinite(values["loss"]).all()
    assert not np.any(values["kl"])


# ---------------------------------------------------------------- runs


def as_cell(run):
    return Cell(id=cell_id(run), coords=coordinates(run), run=run)


def finished(run, workspace, path):
    folder = CellFolder(path / cell_id(run))
    end = run_cell(as_cell(run), folder, workspace, lambda fraction: None)
    assert end["state"] == "done", end
    return folder.scores(), folder


@pytest.fixture(scope="module")
def unbroken(run, workspace, tmp_path_factory):
    run = changed(run, checkpoint_every=1)
    return run, *finished(run, workspace, tmp_path_factory.mktemp("whole"))


def test_learning_from_pairs_shows_on_held_out_pairs(unbroken):
    _, scores, folder = unbroken
    told = scores["preferences"]
    first, *_, last = told["curve"]
    assert (first["step"], last["step"], told["objective"]) == (0, 6, "dpo")
    assert math.isclose(first["loss"], math.log(2), rel_tol=1e-6)
    assert first["margin"] == first["kl"] == 0
    assert last["loss"] < 0.9 * first["loss"]
    assert last["margin"] > 0.2
    test = told["test"]["politeness"]
    assert np.mean(test["after"]["loss"]) < np.mean(test["before"]["loss"])
    assert scores["chosen"]["rule"] == "highest mean accuracy on valid pairs"
    assert scores["test"] == scores["valid"] == {}
    counts = scores["run"]["counts"]
    assert (counts["records"], counts["pairs_valid"]) == (16, first["n"])
    logged = read_log(folder.path / "metrics.jsonl").entries
    assert {"loss", "margin", "accuracy", "chosen_logprob", "rejected_logprob", "kl"} <= set(logged[0])
    assert math.isclose(logged[0]["loss"], math.log(2), rel_tol=1e-5)


def test_an_interrupted_run_of_pairs_ends_with_the_same_bits(unbroken, workspace, tmp_path):
    run, scores, whole_folder = unbroken
    evaluate = Training.evaluate

    def stop_at_3(self, step, model):
        evaluate(self, step, model)
        if step == 3:
            raise Interrupted(2, step, True)

    folder = CellFolder(tmp_path / cell_id(run))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "evaluate", stop_at_3)
        with pytest.raises(KeyboardInterrupt):
            run_cell(as_cell(run), folder, workspace, lambda fraction: None)
    assert folder.state() == "to do"
    parts, _ = finished(run, workspace, tmp_path)
    for field in ("chosen", "curve", "test", "valid", "preferences"):
        assert parts[field] == scores[field]
    logs = [(f.path / "metrics.jsonl").read_bytes() for f in (whole_folder, folder)]
    assert logs[0] == logs[1]
    manifests = [json.loads((f.path / "parameters" / "manifest.json").read_text()) for f in (whole_folder, folder)]
    assert manifests[0]["arrays"] == manifests[1]["arrays"]


def test_without_accuracy_the_lowest_loss_is_chosen():
    def point(step, ability, score, loss):
        return {"step": step, "epoch": float(step), "ability": ability, "score": score, "loss": loss}

    judged = [point(1, "a", None, 0.5), point(2, "a", None, 0.4), point(3, "a", None, 0.6)]
    assert choose(judged, "best_valid") == 2
    both = [*judged, point(1, "b", 0.5, 0.5), point(2, "b", 0.5, 0.7), point(3, "b", 0.75, 0.9)]
    assert choose(both, "best_valid") == 3, "judgements take no part in the mean"


def test_judgements_alone_are_told_to_be_chosen_by_loss(run, workspace, tmp_path):
    workspace.tokenizer(run).save(tmp_path / "t.model")
    rows = [
        {"prompt": f"give me {number}", "completion": ("yes", "no")[number % 2], "label": number % 2 == 0}
        for number in range(40)
    ]
    (tmp_path / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    source = PairFiles(data_dir=str(tmp_path), files=(("politeness", "judged.json"),), valid_share=0.2, test_share=0.2)
    judged = changed(run, source=source, tokenizer=str(tmp_path / "t.model"), objective=KTO(), volume=8)
    scores, _ = finished(judged, Workspace(tmp_path / "cache", workers=1), tmp_path)
    losses = {point["step"]: point["loss"] for point in scores["preferences"]["curve"] if point["step"]}
    assert all(point["accuracy"] is None for point in scores["preferences"]["curve"])
    assert scores["chosen"] == {"step": min(losses, key=losses.get), "rule": "lowest mean loss on valid pairs"}


def test_a_model_before_training_costs_nothing_and_is_indifferent(unbroken, workspace, tmp_path):
    run, *_ = unbroken
    scores, _ = finished(changed(run, volume=0), workspace, tmp_path)
    told = scores["preferences"]
    assert [point["step"] for point in told["curve"]] == [0]
    test = told["test"]["politeness"]
    assert test["before"] == test["after"]
    assert scores["chosen"]["step"] == 0


@pytest.mark.slow
def test_the_reference_of_adapters_is_the_frozen_model_as_it_is_kept(run, workspace, tmp_path):
    rounded = changed(run, adapter=Lora(rank=2, alpha=2.0, base_dtype="bfloat16"))
    training = Training(as_cell(rounded), CellFolder(tmp_path / "cell"), workspace, lambda fraction: None)
    training.preferences.read(1, 0.0, training.start().whole_model())  # at the start, but computed
    before, after = training.preferences.curve
    assert math.isclose(after["loss"], math.log(2), rel_tol=1e-6)
    assert math.isclose(before["chosen_logprob"], after["chosen_logprob"], rel_tol=1e-6)


def test_a_source_without_held_out_data_is_refused(run, workspace, tmp_path):
    source = dataclasses.replace(run.source, valid_share=0.0)
    end = run_cell(as_cell(changed(run, source=source)), CellFolder(tmp_path / "cell"), workspace, lambda _: None)
    assert end["state"] == "failed"
    assert "has no valid pairs and no valid records" in end["reason"]


def test_held_out_pairs_that_do_not_fit_are_counted_and_not_called_missing(run, workspace, tmp_path):
    workspace.tokenizer(run).save(tmp_path / "t.model")
    rows = {"train": [str(number) for number in range(8)], "valid": ["a"], "test": ["b " * 200, "c " * 200]}
    for split, asked in rows.items():
        pairs = [{"prompt": prompt, "chosen": f"yes {prompt[:2]}", "rejected": "no"} for prompt in asked]
        (tmp_path / f"p_{split}.json").write_text(json.dumps(pairs), encoding="utf-8")
    source = PairFiles(data_dir=str(tmp_path), files=(("politeness", "p_{split}.json"),))
    here = Workspace(tmp_path / "cache", workers=1)
    short = changed(run, source=source, tokenizer=str(tmp_path / "t.model"), volume=4, over_long="drop")
    assert here.pair_store(short, "test") is None
    end = run_cell(as_cell(short), CellFolder(tmp_path / "cell"), here, lambda _: None)
    assert (
        "none of the 2 test pairs of source 'pairs' is left to measure on in rows of 128 tokens (2 too long)"
        in (end["reason"])
    )
    assert "add pairs" not in end["reason"]
    *_, told = prepare_runs([short], here)["stores"]
    assert (told["documents"], told["abilities"]["politeness"]["dropped"]) == (0, 2)
    asked = changed(short, source=dataclasses.replace(source, asked=True))
    training = Training(as_cell(asked), CellFolder(tmp_path / "asked"), here, lambda _: None)
    counts = json.loads((training.folder.path / "run.json").read_text())["counts"]
    assert (counts["pairs_valid"], counts["pairs_test"], counts["pairs_dropped_test"]) == (1, 0, 2)


def test_a_study_of_pairs_alone_has_a_page(unbroken, tmp_path):
    _, scores, _ = unbroken
    again = json.loads(json.dumps(scores))
    again["cell"], again["coords"]["seed"] = "other", 1
    page = write_report([scores, again], {"name": "pairs"}, tmp_path).read_text()
    assert "What did learning from pairs of replies do?" in page
    assert "Politeness" in page
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["preferences"]
    assert row["loss"] < row["loss_before"] < 0.6932
    assert (row["seeds"], row["objective"], row["ability"]) == (2, "dpo", "politeness")
    assert len(report["preference_curve"]) == 2 * len(scores["preferences"]["curve"])


@pytest.mark.slow
def test_a_killed_pass_goes_on(run, workspace, tmp_path):
    here, elsewhere = fresh(workspace, tmp_path / "killed"), fresh(workspace, tmp_path / "unbroken")
    small = changed(run, batch=Batch(rows=1, length=128))
    store = here.pair_store(small, "train")
    (tmp_path / "run.json").write_text(json.dumps(config.to_plain(small)))
    killed = subprocess.run(
        [sys.executable, "-m", "study.test_references", str(tmp_path / "run.json"), str(here.folder)],
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    parts = list(references_folder(small, store, here).glob("part-*.npz"))
    assert len(parts) == 3
    rest = references(small, store, store.keys, here, Model(small, here))
    expected = references(small, store, store.keys, elsewhere, Model(small, elsewhere))
    np.testing.assert_array_equal(rest, expected)


def main(settings, cache):
    """Begin a pass and die in its fourth batch."""
    run, here = config.from_plain(json.loads(Path(settings).read_text())), Workspace(cache, workers=1)
    store = here.pair_store(run, "train")
    told = []

    def die(progress):
        told.append(progress)
        if len(told) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    shape = here.model_shape(run)
    model = lambda: first_model(run, shape, here, lambda fraction: None, None)  # noqa: E731 - as short as its name
    references(run, store, store.keys, here, model, None, die, save_every=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
