"""One update: what an empty batch does, what the metrics are, when a program is shared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import tree
from dynamics.errors import UserError
from dynamics.train.optimizer import Custom
from dynamics.train.step import init_state, make_step, metric_values
from train.tiny import MODEL, OBJECTIVE, OPTIMIZER, device_batch, empty_batch, fresh, model

STEP = make_step(OBJECTIVE, OPTIMIZER)


def test_a_batch_without_trained_tokens_counts_as_a_step_and_changes_nothing():
    state, metrics = STEP(fresh(), empty_batch(0, 0))
    assert int(state.step) == 1
    assert tree.tree_digest(state.model) == tree.tree_digest(model())
    assert tree.tree_digest(state.opt_state) == tree.tree_digest(fresh().opt_state)
    values = metric_values(metrics)
    assert (values["weight"], values["loss"], values["grad_norm"]) == (0.0, 0.0, 0.0)


def test_metrics_stay_on_the_device_as_sums_and_weights():
    batch = device_batch(0, 0)
    _, metrics = STEP(fresh(), batch)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(metrics))
    values = metric_values(metrics)
    assert values["weight"] == batch["trained_weights"].sum()
    assert values["loss"] == pytest.approx(np.log(MODEL.vocab_size), rel=0.2)  # a fresh model knows nothing
    assert values["learning_rate"] == float(OPTIMIZER.learning_rate(0, 20))
    assert values["grad_norm"] > 0


def test_training_on_one_batch_lowers_its_loss():
    state, losses = fresh(), []
    for _ in range(15):
        state, metrics = STEP(state, device_batch(0, 0))
        losses.append(metric_values(metrics)["loss"])
    assert losses[-1] < losses[0] - 0.05


def test_a_step_consumes_its_state():
    state = fresh()
    STEP(state, device_batch(0, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.model))


def test_equal_settings_share_one_compiled_step():
    assert make_step(OBJECTIVE, dataclasses.replace(OPTIMIZER)) is STEP
    assert make_step(OBJECTIVE, dataclasses.replace(OPTIMIZER, peak_lr=0.5)) is not STEP


def test_an_optimizer_of_optax_trains_too():
    lion = Custom(factory="optax:lion", peak_lr=1e-3, end_lr=0.0, schedule="linear", clip=1.0)
    state = init_state(model(), lion, total_steps=5)
    state, _ = make_step(OBJECTIVE, lion)(state, device_batch(0, 0))
    # A first direction of Lion is a sign and its decay is small, so the weights move by the rate.
    moved = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), state.model, model())
    assert max(float(leaf) for leaf in jax.tree.leaves(moved)) == pytest.approx(1e-3, rel=0.1)


def test_a_run_without_updates_is_refused():
    with pytest.raises(UserError, match="at least one update"):
        init_state(model(), OPTIMIZER, total_steps=0)
