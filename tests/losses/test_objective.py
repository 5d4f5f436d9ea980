"""The chunked losses equal the naive ones and never hold all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.errors import UserError
from dynamics.losses.objective import token_logprobs, weighted_loss

rng = np.random.default_rng(0)
GROUPS, N, D, V = 2, 11, 8, 32
HIDDEN = jnp.asarray(rng.normal(size=(GROUPS, N, D)), jnp.float32)
HEAD = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
TARGETS = jnp.asarray(rng.integers(0, V, (GROUPS, N)), jnp.int32)
WEIGHTS = jnp.asarray(rng.uniform(size=(GROUPS, N)), jnp.float32)


def naive(hidden, head, targets):
    return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_logprobs_and_their_gradients_are_the_naive_ones(chunk):
    def fast(hidden, head):
        return jnp.sum(jnp.sin(token_logprobs(hidden, head, TARGETS, chunk=chunk)))

    def slow(hidden, head):
        return jnp.sum(jnp.sin(naive(hidden, head, TARGETS)))

    np.testing.assert_allclose(
        token_logprobs(HIDDEN, HEAD, TARGETS, chunk=chunk), naive(HIDDEN, HEAD, TARGETS), atol=2e-6
    )
    for mine, theirs in zip(*(jax.jit(jax.grad(f, (0, 1)))(HIDDEN, HEAD) for f in (fast, slow)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_weighted_loss_and_its_gradients_are_the_naive_ones(chunk):
    def fast(hidden, head):
        return 3.0 * weighted_loss(hidden, head, TARGETS, WEIGHTS, chunk=chunk)

    def slow(hidden, head):
        return -3.0 * jnp.sum(WEIGHTS * naive(hidden, head, TARGETS))

    (value, mine), (expected, theirs) = (jax.jit(jax.value_and_grad(f, (0, 1)))(HIDDEN, HEAD) for f in (fast, slow))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(fast(HIDDEN, HEAD), expected, rtol=1e-6)  # without gradients: another program
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("loss", [token_logprobs, weighted_loss])
def test_no_array_holds_more_logits_than_a_chunk(loss):
    extra = (WEIGHTS,) if loss is weighted_loss else ()

    def total(hidden, head):
        return jnp.sum(loss(hidden, head, TARGETS, *extra, chunk=4))

    sizes = array_sizes(jax.make_jaxpr(jax.grad(total, (0, 1)))(HIDDEN, HEAD).jaxpr)
    assert max(sizes) == GROUPS * 4 * V


def array_sizes(jaxpr):
    """The number of elements of every array that a program holds, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from array_sizes(inner)


def test_logits_that_fit_into_one_chunk_are_computed_once():
    def program(chunk):
        return jax.make_jaxpr(
            jax.grad(lambda hidden, head: jnp.sum(jnp.sin(token_logprobs(hidden, head, TARGETS, chunk=chunk))), (0, 1))
        )(HIDDEN, HEAD)

    assert [str(program(chunk)).count("dot_general[") for chunk in (4, N - 1, N, 100)] == [4, 4, 3, 3]
    assert max(array_sizes(program(N).jaxpr)) == GROUPS * N * V  # what the one chunk has anyway


def test_weights_of_zero_leave_no_trace():
    weights = WEIGHTS.at[:, 5:].set(0.0)
    gradient = jax.jit(jax.grad(lambda h, w, t: weighted_loss(h, w, t, weights, chunk=4), (0, 1)))

    def gradients(targets):
        return gradient(HIDDEN, HEAD, targets)

    for mine, theirs in zip(gradients(TARGETS), gradients(TARGETS.at[:, 5:].set(0)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.any(gradients(TARGETS)[0][:, 5:])


def test_half_precision_hidden_states_still_give_float32_logprobs():
    logprobs = token_logprobs(HIDDEN.astype(jnp.bfloat16), HEAD, TARGETS, chunk=4)
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, naive(HIDDEN, HEAD, TARGETS), atol=0.1)


def test_a_chunk_below_one_is_refused():
    with pytest.raises(UserError, match="chunk is 0; give the positions that have logits at a time"):
        token_logprobs(HIDDEN, HEAD, TARGETS, chunk=0)
