"""Laws of training: any split of a batch, any mesh, any interruption is the same run."""

import dataclasses
import math
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train.tiny import MODEL, OBJECTIVE, OPTIMIZER, batches, device_batch, fresh, model, open_batches, target

from dynamics import tree
from dynamics.model.sharding import MeshShape, make_mesh, num_row_shards
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log
from dynamics.train.loop import train
from dynamics.train.population import Member, make_population_step, train_population
from dynamics.train.step import gradient_sums, make_step, metric_values

MESHES = [
    MeshShape(data=1),
    MeshShape(data=8),
    MeshShape(data=4, fsdp=2),
    MeshShape(data=4, tensor=2),
    MeshShape(data=2, fsdp=2, tensor=2),
]


SUMS = jax.jit(lambda model, batch: gradient_sums(OBJECTIVE, model, batch))


def mean_gradient(batch) -> tuple[float, dict[str, np.ndarray]]:
    gradients, metrics = SUMS(model(), batch)
    weight = float(metrics["loss"][1])
    named = {name: np.asarray(leaf) / weight for name, leaf in tree.named_leaves(gradients).items()}
    return float(metrics["loss"][0]) / weight, named


def assert_same_state(one, other, tolerance: float) -> None:
    other = tree.named_leaves(other)
    for name, leaf in tree.named_leaves(one).items():
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(other[name]), atol=tolerance, err_msg=name)


@pytest.mark.parametrize("micro", [2, 4])
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(micro):
    loss, gradient = mean_gradient(device_batch(0, 0))
    split_loss, split_gradient = mean_gradient(device_batch(0, 0, micro=micro))
    assert split_loss == pytest.approx(loss, abs=1e-5)
    for name, whole in gradient.items():
        np.testing.assert_allclose(split_gradient[name], whole, atol=1e-5, err_msg=name)


def test_micro_batches_of_unequal_weight_still_divide_once():
    batch = device_batch(0, 0, micro=2)
    weights = batch["trained_weights"].copy()
    weights[1] *= np.arange(weights.shape[-1]) < 3  # the second micro-batch trains on next to nothing
    _, gradient = mean_gradient(batch | {"trained_weights": weights})
    joined = {name: value.reshape(1, -1, *value.shape[2:]) for name, value in batch.items()}
    joined["trained_weights"] = weights.reshape(1, 2, -1)  # two groups of rows in place of two micro-batches
    _, expected = mean_gradient(joined)
    for name, whole in expected.items():
        np.testing.assert_allclose(gradient[name], whole, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("micro", [1])
def test_every_mesh_gives_the_same_step(shape, micro):
    expected, metrics = make_step(OBJECTIVE, OPTIMIZER)(fresh(), device_batch(0, 0))
    mesh = make_mesh(shape)
    batch = device_batch(0, 0, groups=num_row_shards(mesh), micro=micro)
    state, mesh_metrics = make_step(OBJECTIVE, OPTIMIZER, mesh)(fresh(mesh=mesh), batch)
    values, mesh_values = metric_values(metrics), metric_values(mesh_metrics)
    assert mesh_values["loss"] == pytest.approx(values["loss"], abs=1e-5)
    assert mesh_values["grad_norm"] == pytest.approx(values["grad_norm"], abs=1e-5)
    # The first moment is (1 - b1) times the gradient: equal moments are equal gradients.
    assert_same_state(state.opt_state.mu, expected.opt_state.mu, 1e-5)


@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_the_head_is_gathered_and_its_gradient_reduced_once_not_for_every_chunk(shape):
    chunk = 16 if shape.tensor > 1 else 4
    mesh = make_mesh(shape)
    step = make_step(dataclasses.replace(OBJECTIVE, chunk=chunk), OPTIMIZER, mesh)
    batch = step.place(device_batch(0, 0, groups=num_row_shards(mesh)))
    assert batch["trained_index"].shape[-1] > chunk
    program = step.lower(fresh(mesh=mesh), batch).compile().as_text()
    found = re.findall(r"= (\S+|\(.*?\)) (all-[a-z-]+|reduce-scatter|collective-permute)\(.*op_name=\"(.*?)\"", program)
    # A look-up in a split embedding table, left to the compiler, rebuilds the whole activation on every device.
    assert {kind for _, kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    inside = [shapes for shapes, _, name in found if "while/body" in name]
    sizes = [math.prod(map(int, dims.split(","))) for shapes in inside for dims in re.findall(r"\[([\d,]+)\]", shapes)]
    assert inside
    assert max(sizes, default=0) <= chunk * MODEL.d_model  # hidden states, but nothing of the head's size


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_a_step_leaves_every_array_where_it_found_it(shape):
    mesh = make_mesh(shape)
    step = make_step(OBJECTIVE, OPTIMIZER, mesh)
    state = fresh(mesh=mesh)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    compiled = step.compiled._cache_size()
    for number in range(3):
        state, _ = step(state, device_batch(0, number, groups=num_row_shards(mesh)))
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, before)
    assert all(jax.tree.leaves(same))
    assert step.compiled._cache_size() <= max(compiled, 1)


@settings(max_examples=4)
@given(stop=st.integers(1, 11), every=st.integers(1, 5))
def test_a_run_resumed_at_any_step_is_bit_identical(stop, every):
    step = make_step(OBJECTIVE, OPTIMIZER)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole.jsonl", Path(folder) / "cut.jsonl"
        with Log(whole) as log:
            expected = train(fresh(), open_batches, step, until=12, log=log).state
        with Checkpointer(Path(folder) / "steps", config="c") as checkpointer, Log(cut) as log:
            train(fresh(), open_batches, step, until=stop, checkpointer=checkpointer, save_every=every, log=log)
            log.write(stop + 1, {"loss": 9.0})  # what a kill leaves behind
            restored = checkpointer.restore_latest(target())
            assert restored.step == stop
            resumed = train(restored.state, open_batches, step, until=12, checkpointer=checkpointer, log=log)
        assert resumed.repeated == 1
        assert tree.tree_digest(resumed.state) == tree.tree_digest(expected)
        assert cut.read_bytes() == whole.read_bytes()


def test_the_length_of_a_run_is_not_in_its_program():
    step = make_step(OBJECTIVE, OPTIMIZER)
    one = step.lower(fresh(total_steps=7), device_batch(0, 0)).as_text()
    assert one == step.lower(fresh(total_steps=7000), device_batch(0, 0)).as_text()


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_population_equals_its_members_trained_one_by_one(num_devices):
    lengths = [3, 6, 5]
    step = make_step(OBJECTIVE, OPTIMIZER)
    members, singles = [], []
    for seed, length in enumerate(lengths):
        source = lambda start, stop, seed=seed: batches(seed, start, stop)  # noqa: E731
        singles.append(train(fresh(seed, total_steps=length), source, step, until=length).state)
        members.append(Member(state=fresh(seed, total_steps=length), batches=source, until=length))
    population = make_population_step(OBJECTIVE, OPTIMIZER, tuple(jax.devices()[:num_devices]))
    trained = train_population(members, population)
    assert trained.failures == {}
    for state, single in zip(trained.states, singles, strict=True):
        assert int(state.step) == int(single.step)
        assert_same_state(state.opt_state.mu, single.opt_state.mu, 1e-5)
        # Adam divides by the root of the second moment, which lifts rounding of tiny gradients to a share of the rate.
        assert_same_state(state.model, single.model, 1e-4)
