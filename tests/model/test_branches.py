"""Replies in branches of a shared prompt equal replies that each have their own, and never see each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from train.paired import micro_batch, random_rows

from dynamics import tree
from dynamics.errors import UserError
from dynamics.losses.preference import reply_logprobs
from dynamics.model.attention import attention, kernel_for
from dynamics.model.llama import LlamaConfig, abstract, attention_kernel, init
from dynamics.model.lora import Lora, attach, freeze, init_adapters
from dynamics.model.sharding import MeshShape, activate, make_mesh, shardings_for

TINY = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
    attention_block=16, scan_layers=True,
)  # fmt: skip
ROWS = random_rows(0, rows=2, pairs=2, vocab=32, sides=3, longest=4)
SHARED = micro_batch(ROWS, length=32, groups=2)
ALONE = micro_batch(ROWS, length=48, groups=2, shared=False)


@functools.cache
def drawn():
    return tree.named_leaves(jax.jit(functools.partial(init, TINY))(jax.random.key(0)))


def model_of(**change):
    """The same parameters, computed in another way."""
    return tree.with_leaves(abstract(dataclasses.replace(TINY, **change)), drawn())


def total(model, batch):
    """A sum over all replies, each with a factor of its own, and their log-probabilities."""
    sums, tokens = reply_logprobs(model, batch, chunk=64)
    return jnp.sum(sums * jnp.sin(1.0 + jnp.arange(sums.size).reshape(sums.shape))), (sums, tokens)


def value_and_gradient(model, batch):
    (_, (sums, tokens)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(model, batch)
    return sums, tokens, gradient


@functools.cache
def oracle():
    """Every reply behind its own prompt, by the definition of attention."""
    return value_and_gradient(model_of(attention="reference"), ALONE)


def assert_close(mine, theirs):
    for (name, a), b in zip(tree.named_leaves(mine).items(), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "reference", "remat": "full"},
        {"attention": "fused"},
        {"attention": "blocks", "scan_layers": False},
        {"attention": "blocks", "remat": "attention"},
    ],
    ids=str,
)
def test_a_shared_prompt_gives_the_logprobs_and_gradients_of_prompts_apart(change):
    sums, tokens, gradient = value_and_gradient(model_of(**change), SHARED)
    expected_sums, expected_tokens, expected_gradient = oracle()
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(sums, expected_sums, atol=1e-5)
    assert_close(gradient, expected_gradient)


def test_on_a_mesh_branches_travel_with_their_positions():
    mesh, model = make_mesh(MeshShape(fsdp=2, sequence=2, tensor=2)), model_of()

    @jax.jit
    def run(model, batch):
        with activate(mesh):
            return jax.value_and_grad(total, has_aux=True)(model, batch)

    batch = jax.device_put(dict(SHARED), NamedSharding(mesh, PartitionSpec(("dcn", "data", "fsdp"))))
    (_, (sums, _)), gradient = run(jax.device_put(model, shardings_for(model, mesh)), batch)
    np.testing.assert_allclose(sums, oracle()[0], atol=1e-5)
    assert_close(gradient, oracle()[2])


def test_adapters_read_branches_as_the_model_does():
    lora, model = Lora(rank=2, alpha=4.0), model_of(attention="reference")
    adapters = jax.tree.map(lambda x: x + 0.05, init_adapters(model, lora, jax.random.key(1)))
    both = [jax.jit(total)(attach(freeze(model, lora), adapters), batch)[1][0] for batch in (SHARED, ALONE)]
    np.testing.assert_allclose(*both, atol=1e-5)
    assert np.abs(both[0] - oracle()[0]).max() > 1e-2


@pytest.mark.parametrize("change", [{"attention": k} for k in ("reference", "blocks", "fused")], ids=str)
def test_no_reply_token_has_any_influence_on_another_reply_or_pair(change):
    row, length = SHARED["segments"][:1], SHARED["segments"].shape[1]
    model = init(dataclasses.replace(TINY, vocab_size=length, **change), jax.random.key(3))
    segments, branches = row[0], SHARED["branches"][0]

    def hidden(embeddings):
        chosen = jax.tree.map(lambda x: x, model)
        chosen.embedding[...] = embeddings
        whole = (jnp.asarray(SHARED["positions"][:1]), jnp.asarray(row))
        return chosen(jnp.arange(length)[None], *whole, branches=jnp.asarray(SHARED["branches"][:1]))[0].sum(-1)

    # Token i is row i of the embedding, so the Jacobian tells which position each output depends on.
    depends = np.abs(jax.jit(jax.jacrev(hidden))(model.embedding[...])).max(axis=-1) > 0
    i, j = np.mgrid[:length, :length]
    prompt_or_own = (branches[j] == 0) | (branches[j] == branches[i])
    expected = (j <= i) & (segments[i] > 0) & (segments[i] == segments[j]) & prompt_or_own
    expected |= (i == j) & (segments[i] == 0)  # padding has its own residual stream
    np.testing.assert_array_equal(depends, expected)


def test_a_segment_without_branches_is_what_it_was():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 32, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray(SHARED["segments"])
    for kind in ("reference", "blocks", "fused"):
        mix = jax.jit(functools.partial(attention, kind=kind, block=16))
        same = mix(query, key, value, segments, branches=jnp.zeros_like(segments))
        np.testing.assert_array_equal(same, mix(query, key, value, segments))


def test_auto_takes_a_kernel_that_tells_branches_apart():
    for platform, kernel in (("cpu", "blocks"), ("tpu", "blocks"), ("gpu", "cudnn"), ("another", "fused")):
        given = {"platform": platform, "length": 256, "head_dim": 64, "dtype": "bfloat16"}
        assert kernel_for("auto", branches=True, **given) == kernel
    large = dataclasses.replace(TINY, head_dim=64)
    assert attention_kernel(large, "tpu", 256) == "splash"
    assert attention_kernel(large, "tpu", 256, branches=True) == "blocks"
    with pytest.raises(UserError, match=r"'splash' tells segments apart but not the branches.*shared_prompt=False"):
        kernel_for("splash", branches=True, **given)
