"""Difficulties that a model gives are right, computed once and never lost; orders by them are what a run reads."""

import dataclasses

import jax
import numpy as np
import pytest

from dynamics.data.curriculum import FAMILY, Competence, Paced, Sorted, Staged
from dynamics.data.difficulty import ALONE, GIVEN, IFD, Length, Level, ModelLoss
from dynamics.data.mixture import Interleaved, Shuffled, document_key
from dynamics.data.sources import Files, write_jsonl
from dynamics.errors import UserError
from dynamics.model.sharding import MeshShape
from dynamics.study.base import first_model, run_mesh
from dynamics.study.cell import Training
from dynamics.study.course import device_batches, mixture_of, plan_run
from dynamics.study.difficulty import order_scores, pass_sums, trained_keys
from dynamics.study.folder import CellFolder
from dynamics.study.grid import Cell, Study, coordinates
from dynamics.study.identity import cell_id
from dynamics.study.order_figures import order_figure
from dynamics.study.order_table import described, order_table, ordered
from dynamics.study.prepare import Workspace
from dynamics.study.run import Batch, Budget

from .tiny import RUN, changed

START = changed(RUN, base=None)  # random parameters: nothing is pre-trained


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"))


def by(difficulty):
    return changed(START, order=Sorted(by=difficulty))


def model_of(run, workspace):
    return first_model(run, workspace.model_shape(run), workspace, lambda fraction: None, None)


def loss(model, tokens, scored):
    """Mean loss of the scored places of one document alone in a row, in plain numpy."""
    size = 128
    row = np.zeros((1, size), np.int32)
    row[0, : len(tokens)] = tokens
    inside = (np.arange(size) < len(tokens)).astype(np.int32)[None]
    logits = np.asarray(LOGITS(model, row, np.arange(size)[None] * inside, inside)[0], np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.mean([logprobs[place - 1, tokens[place]] for place in np.flatnonzero(scored) if place])


LOGITS = jax.jit(lambda model, tokens, positions, segments: model(tokens, positions, segments) @ model.head)


def test_model_loss_and_ifd_are_the_losses_of_each_record_by_itself(workspace):
    run = by(IFD())
    store, model = workspace.pool(run).store, model_of(run, workspace)
    ratios, losses = order_scores(run, workspace), order_scores(by(ModelLoss()), workspace)
    assert ratios is not None
    assert losses is not None
    assert sorted(ratios) == sorted(losses) == trained_keys(run, workspace)
    for key in trained_keys(run, workspace)[::9]:
        document = store.document(int(store.indices([key])[0]))
        given = loss(model, document.tokens, document.trained)
        places = np.flatnonzero(document.trained)
        alone = 0.0
        for reply in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            # DoIT's opening is one token, <assistant>, and it writes no begin of text.
            part = slice(reply[0] - 1, reply[-1] + 1)
            alone += loss(model, document.tokens[part], document.trained[part]) * len(reply) / len(places)
        assert losses[key] == pytest.approx(given, rel=1e-4)
        assert ratios[key] == pytest.approx(given / alone, rel=1e-4)


def test_a_mesh_gives_the_same_scores(workspace, tmp_path):
    run = changed(by(ModelLoss()), mesh=MeshShape(data=2))
    here = order_scores(by(ModelLoss()), workspace)
    there = order_scores(run, Workspace(tmp_path), mesh=run_mesh(run))
    assert there == pytest.approx(here, rel=1e-5)


def test_a_pass_is_made_once_for_each_start_and_kind(workspace):
    run = by(ModelLoss())
    keys = trained_keys(run, workspace)
    first = pass_sums(run, GIVEN, keys, workspace, model=lambda: model_of(run, workspace))

    def never():
        raise AssertionError("everything was there")

    again = pass_sums(run, GIVEN, keys[:5], workspace, model=never)
    index = workspace.pool(run).store.indices(keys)
    np.testing.assert_array_equal(again[index[:5]], first[index[:5]])
    assert np.isnan(again[index[5:]]).all()  # as if nothing else had been asked for
    with pytest.raises(AssertionError, match="was there"):
        pass_sums(changed(run, seed=1), GIVEN, keys, workspace, model=never)  # other random parameters


def test_an_interrupted_pass_goes_on_and_a_damaged_part_is_made_again(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    run = by(ModelLoss())
    keys, model = trained_keys(run, workspace), model_of(run, workspace)
    asked = 0

    def read():
        nonlocal asked
        asked += 1
        return model

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pass_sums(run, GIVEN, keys, workspace, model=read, report=stop)
    told = []
    whole = pass_sums(run, GIVEN, keys, workspace, model=read, report=told.append, save_every=0.0)
    assert 0 < told[-1].total < len(keys)  # the first batch was kept
    assert not np.isnan(whole[workspace.pool(run).store.indices(keys)]).any()
    (part, *_) = sorted(tmp_path.glob("difficulty/*/part-*.npz"))
    part.write_bytes(part.read_bytes()[:-9])
    repaired = pass_sums(run, GIVEN, keys, workspace, model=read)
    np.testing.assert_allclose(repaired, whole, rtol=1e-5)
    assert asked == 3
    assert "set aside" in capsys.readouterr().err
    assert sorted(tmp_path.glob("difficulty/*/damaged-*"))


def test_scores_that_are_no_numbers_are_never_kept(tmp_path):
    workspace = Workspace(tmp_path)
    run = by(ModelLoss())
    keys = trained_keys(run, workspace)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model_of(run, workspace))
    with pytest.raises(UserError, match="log-probability that is no finite number"):
        pass_sums(run, ALONE, keys, workspace, model=lambda: broken)
    assert not list(tmp_path.glob("difficulty/*/part-*"))


def test_planning_needs_no_pass_and_counts_the_same_places(tmp_path):
    workspace = Workspace(tmp_path)
    run = changed(
        START,
        order=Staged(by=ModelLoss(), stages=4, replay=0.3),
        budget=Budget(epochs=2),
        batch=Batch(rows=8, length=256, documents=4),
    )
    planned, _ = plan_run(run, workspace)
    assert not (tmp_path / "difficulty").exists()
    real, _ = plan_run(run, workspace, scores=order_scores(run, workspace))
    assert (planned.steps, planned.documents) == (real.steps, real.documents)
    assert planned.batches.fingerprint != real.batches.fingerprint


@pytest.mark.parametrize("order", FAMILY, ids=lambda order: order.name)
def test_packed_rows_flattened_are_the_planned_order_and_resume_anywhere(order, workspace):
    run = changed(START, order=order, budget=Budget(epochs=2), volume=4)
    scores = order_scores(run, workspace)
    course, slices = plan_run(run, workspace, scores=scores)
    pool = workspace.pool(run)
    mixture = mixture_of(run, {name: len(ids) for name, ids in pool.ids.items()})
    planned = mixture.planned(slices, num_epochs=2, scores=scores)
    wanted = np.concatenate(
        [
            pool.store.document(index).tokens
            for index in pool.store.indices([document_key(one) for epoch in planned for one in epoch]).tolist()
        ]
    )
    opened = device_batches(course, groups=1, micro=1, prefetch=0)
    batches = list(opened(0, course.steps))
    plan = course.batches.plan
    read = [
        batches[plan.batch[place]]["tokens"][0, plan.row[place], plan.offset[place] :][: plan.num_tokens[place]]
        for place in range(plan.num_documents)
    ]
    np.testing.assert_array_equal(np.concatenate(read), wanted)
    middle = course.steps // 2
    for one, other in zip(opened(middle, course.steps), batches[middle:], strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_cell_reads_its_records_in_the_order_of_their_scores(workspace, tmp_path):
    run = by(ModelLoss())
    cell = Cell(id=cell_id(run), coords=coordinates(run), run=run)
    folder = CellFolder(tmp_path / cell.id)
    with folder.claim():
        course = Training(cell, folder, workspace, lambda fraction: None).course
    scores = order_scores(run, workspace)
    assert course is not None
    assert scores is not None
    size = course.documents_per_epoch
    read = [scores[course.batches.store.keys[index]] for index in course.batches.documents[:size].tolist()]
    assert read == sorted(read)
    assert cell.coords["order"] == "sorted by model loss, easiest first"


def test_levels_come_from_the_records_and_missing_ones_are_counted_before_training(tmp_path):
    def row(number, split):
        turns = [{"role": "user", "content": f"{split} {number}"}, {"role": "assistant", "content": "yes"}]
        return {"messages": turns, "level": 1 + number % 3} if number else {"messages": turns}

    for split in ("train", "valid", "test"):
        write_jsonl(tmp_path / "data" / "math" / f"{split}.jsonl", [row(number, split) for number in range(6)])
    source = Files(data_dir=str(tmp_path / "data"))
    run = changed(START, source=source, volume=6, order=Staged(by=Level(missing=3)), vocab_size=368)
    workspace = Workspace(tmp_path / "cache")
    scores = order_scores(run, workspace)
    assert sorted((scores or {}).values()) == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    with pytest.raises(UserError, match="1 of 6 records have no level"):
        plan_run(changed(run, order=Staged(by=Level())), workspace)


def test_the_table_tells_what_comes_when_what_repeats_and_what_never_comes(workspace):
    orders = (
        Shuffled(),
        Sorted(by=Length()),
        Staged(by=Length(), stages=2, replay=0.25),
        Competence(by=Length()),
        Paced(by=ModelLoss(), epochs=1),
    )
    run = changed(START, budget=Budget(epochs=2))
    study = Study(name="orders", run=run, orders=orders, volumes=(1, 4), seeds=(0, 1), measure_speedup=False)
    found = {one["order"]: one for one in order_table(study, workspace)["orders"]}
    assert list(found) == [order.name for order in orders]
    assert ordered(study) == [order.name for order in orders[1:]]
    shuffled, rising, staged, drawn, paced = found.values()
    assert (shuffled["volume"], shuffled["seed"], shuffled["records"]) == (4, 0, 40)
    assert (shuffled["difficulty"], shuffled["ordered_by_it"]) == ("length", False)
    means = [tenth["difficulty"] for tenth in rising["tenths"]]
    assert means == sorted(means)
    assert sum(tenth["places"] for tenth in rising["tenths"]) == rising["places_per_epoch"] == 40
    assert all(abs(sum(tenth["abilities"].values()) - 1) < 0.01 for tenth in rising["tenths"])
    assert staged["places_per_epoch"] == 40 + 7  # a third of the second stage's 20
    assert sum(tenth["repeats"] for tenth in staged["tenths"]) == staged["by_epoch"][0]["repeats"] == 7
    assert staged["by_epoch"][0]["not_read"] == 0
    first, second = drawn["by_epoch"]
    assert first["repeats"] == first["not_read"] > 0
    assert second["repeats"] == second["not_read"] == drawn["never_read"] == 0
    assert paced["difficulty"] == "model loss"


def test_tenths_are_of_the_epoch_and_not_of_what_is_read_of_it(workspace):
    run = changed(START, order=Sorted(by=Length()), volume=4)
    (whole,) = order_table(Study(name="whole", run=changed(run, budget=Budget(epochs=1)), base_cells=False), workspace)[
        "orders"
    ]
    part = described(changed(run, budget=Budget(epochs=0.5)), workspace, by=Length())
    read = part["first_epoch_read"]
    assert (whole["first_epoch_read"], whole["places_per_epoch"], part["places_per_epoch"]) == (40, 40, 40)
    assert 0 < read < 36
    assert [tenth["places"] for tenth in part["tenths"]] == [min(4, max(0, read - 4 * k)) for k in range(10)]
    full = read // 4
    assert part["tenths"][:full] == whole["tenths"][:full]
    assert part["tenths"][9]["difficulty"] is None
    assert set(part["tenths"][9]["abilities"].values()) == {None}
    assert part["by_epoch"][0]["difficulty"][:full] == whole["by_epoch"][0]["difficulty"][:full]
    figure = order_figure({"name": "parts", "orders": [whole, part]})
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[1:3] == ["80% of its records", "mean of the epoch, as far as it is read"]
    assert labels[-1] == "not read: the budget ends"


def test_orders_without_a_difficulty_need_no_scores(workspace):
    assert order_scores(changed(START, order=Interleaved()), workspace) is None
    assert order_scores(dataclasses.replace(by(ModelLoss()), volume=0, base=RUN.base), workspace) is None
