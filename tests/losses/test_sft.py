"""SFT on trained positions equals cross-entropy over full logits with weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.losses.sft import SFT, score_batch
from dynamics.model.llama import LlamaConfig, init

CONFIG = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24
)
ROWS, LENGTH = 4, 9


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 32, (2, ROWS, LENGTH)).astype(np.int32)
    positions, segments = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)), np.ones((ROWS, LENGTH), np.int32)
    weights = (rng.uniform(size=(ROWS, LENGTH)) * (rng.uniform(size=(ROWS, LENGTH)) < 0.5)).astype(np.float32)
    inputs = {"tokens": jnp.asarray(tokens), "positions": jnp.asarray(positions), "segments": jnp.asarray(segments)}
    return init(CONFIG, jax.random.key(0)), inputs, targets, weights


def compacted(inputs, targets, weights, groups, cap):
    """A micro-batch by a plain loop: the trained positions of each group of rows, padded to `cap`."""
    index, chosen, kept = (np.zeros((groups, cap), kind) for kind in (np.int32, np.int32, np.float32))
    for g, (t, w) in enumerate(zip(np.split(targets, groups), np.split(weights, groups), strict=True)):
        where = np.flatnonzero(w)
        index[g, : len(where)], chosen[g, : len(where)], kept[g, : len(where)] = where, t.flat[where], w.flat[where]
    return inputs | {"trained_index": index, "trained_targets": chosen, "trained_weights": kept}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_loss_is_the_naive_loss_over_full_logits(case, groups):
    model, inputs, targets, weights = case
    batch = compacted(inputs, targets, weights, groups, 20)

    def naive(model):
        logits = model(**inputs) @ model.head
        gold = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(weights * gold)

    expected, expected_grads = jax.jit(jax.value_and_grad(naive))(model)
    (loss, sums), grads = jax.jit(jax.value_and_grad(SFT(chunk=8), has_aux=True))(model, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(sums["loss"][1], weights.sum(), rtol=1e-6)
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_program_never_holds_batch_times_length_times_vocabulary(case):
    model, inputs, targets, weights = case
    batch = compacted(inputs, targets, weights, 1, 24)
    text = jax.jit(jax.grad(SFT(), has_aux=True)).lower(model, batch).as_text()
    assert f"x{CONFIG.vocab_size}xf32" in text  # the reading works: logits of trained positions are there
    for shape in (f"{ROWS}x{LENGTH}x{CONFIG.vocab_size}x", f"{ROWS * LENGTH}x{CONFIG.vocab_size}x"):
        assert f"tensor<{shape}" not in text


def test_score_batch_gives_the_logprob_of_every_trained_target(case):
    model, inputs, targets, weights = case
    micro = compacted(inputs, targets, weights, 2, 20)
    scores = jax.jit(score_batch)(model, {name: np.asarray(array)[None] for name, array in micro.items()})
    assert scores.shape == (1, 2, 20)
    loss, _ = jax.jit(SFT())(model, micro)
    np.testing.assert_allclose(-np.sum(np.asarray(scores[0]) * micro["trained_weights"]), loss, rtol=1e-5)
