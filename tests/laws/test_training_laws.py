"""Laws of training: any split of a batch, any mesh, any interruption is the same run."""

import dataclasses
import math
import re
import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train.tiny import MODEL, OBJECTIVE, OPTIMIZER, batches, device_batch, fresh, model, open_batches, target

from dynamics import tree
from dynamics.model.llama import abstract
from dynamics.model.lora import Lora
from dynamics.model.sharding import MeshShape, make_mesh, num_row_shards
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log
from dynamics.train.loop import train
from dynamics.train.population import Member, make_population_step, train_population
from dynamics.train.step import abstract_state, gradient_sums, init_state, make_step, metric_values

MESHES = [
    MeshShape(data=1),
    MeshShape(data=8),
    MeshShape(data=4, fsdp=2),
    MeshShape(data=4, tensor=2),
    MeshShape(data=2, fsdp=2, tensor=2),
]


LORA = Lora(rank=3, alpha=6.0)
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


def adapted(seed: int = 0, *, total_steps: int = 20, mesh=None, base_dtype: Literal["same", "bfloat16"] = "same"):
    """A fresh run of adapters."""
    lora = dataclasses.replace(LORA, base_dtype=base_dtype)
    key = jax.random.key(seed)
    return init_state(model(), OPTIMIZER, total_steps=total_steps, mesh=mesh, adapter=lora, key=key)


def test_adapters_learn_and_their_base_does_not_change_by_a_bit():
    step, state = make_step(OBJECTIVE, OPTIMIZER), adapted(base_dtype="bfloat16")
    before, losses = tree.tree_digest(state.frozen), []
    for _ in range(15):
        state, metrics = step(state, device_batch(0, 0))
        losses.append(metric_values(metrics)["loss"])
    assert losses[-1] < losses[0] - 0.02
    assert tree.tree_digest(state.frozen) == before
    # No moment of a frozen weight is kept, and nothing frozen goes into a checkpoint.
    names = set(tree.named_leaves(state.trained()))
    assert {name for name in names if name.startswith("opt_state/mu/")} == {
        f"opt_state/mu/{target}/{part}" for target in LORA.targets for part in "ab"
    }
    assert not any(name.startswith("frozen") for name in names)


def test_the_frozen_base_is_an_argument_that_several_runs_share():
    step = make_step(OBJECTIVE, OPTIMIZER)
    first, second = adapted(0), adapted(1)
    second = dataclasses.replace(second, frozen=first.frozen)
    step(first, device_batch(0, 0))
    compiled = step.compiled._cache_size()
    step(second, device_batch(0, 0))  # the base of a step that has been made is still there
    other_base = dataclasses.replace(adapted(2), frozen=jax.tree.map(lambda leaf: leaf + 1, first.frozen))
    step(other_base, device_batch(0, 0))
    assert step.compiled._cache_size() == compiled


def test_any_split_into_micro_batches_gives_adapters_the_same_gradient():
    state = adapted()
    sums = jax.jit(lambda batch: gradient_sums(OBJECTIVE, state.model, batch, state.frozen)[0])
    split = tree.named_leaves(sums(device_batch(0, 0, micro=2)))
    for name, whole in tree.named_leaves(sums(device_batch(0, 0))).items():
        np.testing.assert_allclose(split[name], whole, atol=1e-3, rtol=1e-4, err_msg=name)  # sums, not means


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_adapters_take_the_same_step_on_a_mesh_and_stay_in_place(shape):
    expected, metrics = make_step(OBJECTIVE, OPTIMIZER)(adapted(), device_batch(0, 0))
    mesh = make_mesh(shape)
    state = adapted(mesh=mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(OBJECTIVE, OPTIMIZER, mesh)
    state, mesh_metrics = step(state, device_batch(0, 0, groups=num_row_shards(mesh)))
    assert metric_values(mesh_metrics)["loss"] == pytest.approx(metric_values(metrics)["loss"], abs=1e-5)
    assert_same_state(state.opt_state.mu, expected.opt_state.mu, 1e-5)
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, placed)
    assert all(jax.tree.leaves(same))


def test_adapters_resume_bit_identically_from_a_checkpoint_without_the_base():
    step, state = make_step(OBJECTIVE, OPTIMIZER), adapted()
    goal = abstract_state(abstract(MODEL), OPTIMIZER, adapter=LORA).trained()
    for number in range(4):
        if number == 2:
            with tempfile.TemporaryDirectory() as folder, Checkpointer(folder, config="c") as checkpointer:
                checkpointer.save(number, state.trained())
                restored = checkpointer.restore_latest(goal).state
            assert restored is not None
            resumed = dataclasses.replace(restored, frozen=state.frozen)
            for later in (2, 3):
                resumed, _ = step(resumed, device_batch(0, later))
        state, _ = step(state, device_batch(0, number))
    assert tree.tree_digest(resumed.trained()) == tree.tree_digest(state.trained())


def test_a_population_of_adapters_shares_one_base_and_equals_its_members():
    step, frozen = make_step(OBJECTIVE, OPTIMIZER), adapted().frozen
    members, singles = [], []
    for seed, length in enumerate([2, 3]):
        source = lambda start, stop, seed=seed: batches(seed, start, stop)  # noqa: E731
        starts = [dataclasses.replace(adapted(seed, total_steps=length), frozen=frozen) for _ in range(2)]
        singles.append(train(starts[0], source, step, until=length).state)
        members.append(Member(state=starts[1], batches=source, until=length))
    population = make_population_step(OBJECTIVE, OPTIMIZER, tuple(jax.devices()[:2]))
    trained = train_population(members, population)
    for state, single in zip(trained.states, singles, strict=True):
        assert int(state.step) == int(single.step)
        assert_same_state(state.opt_state.mu, single.opt_state.mu, 1e-5)
        assert_same_state(state.whole_model(), single.whole_model(), 1e-4)


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
