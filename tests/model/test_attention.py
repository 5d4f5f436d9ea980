"""The fast kinds equal the definition, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.model import attention as module

attention = jax.jit(module.attention, static_argnames=("kind", "block"))


def brute_force(query, key, value, segments):
    """Position by position, in float64: the sentence in the module's docstring."""
    batch, length, heads, channels = query.shape
    share = heads // key.shape[2]
    out = np.zeros(query.shape)
    for b in range(batch):
        for i in range(length):
            seen = [j for j in range(i + 1) if segments[b, i] and segments[b, j] == segments[b, i]]
            for h in range(heads if seen else 0):
                scores = key[b, seen, h // share] @ query[b, i, h] / channels**0.5
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights @ value[b, seen, h // share] / weights.sum()
    return out


def arrays(kv_heads):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 11, 4, 6)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 11, kv_heads, 6)).astype(np.float32)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2, [1, 1, 0, 2, 2, 2, 2, 3, 3, 3, 3]], np.int32)
    return query, key, value, segments


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "block"), [("reference", 1), ("fused", 1), ("blocks", 4), ("blocks", 64), ("auto", 4)]
)
def test_every_kind_is_the_brute_force(kind, block, kv_heads):
    query, key, value, segments = arrays(kv_heads)
    mixed = attention(*map(jnp.asarray, (query, key, value, segments)), kind=kind, block=block)
    np.testing.assert_allclose(mixed, brute_force(query, key, value, segments), atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_gradients_of_the_blocks_are_those_of_the_definition(kv_heads):
    query, key, value, segments = map(jnp.asarray, arrays(kv_heads))
    weight = jnp.sin(jnp.arange(query.size, dtype=jnp.float32)).reshape(query.shape)

    def gradients(kind):
        def total(*qkv):
            return jnp.sum(weight * attention(*qkv, segments, kind=kind, block=4))

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)

    for fast, slow in zip(gradients("blocks"), gradients("reference"), strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-5)


def test_half_precision_inputs_are_mixed_in_float32():
    query, key, value, segments = map(jnp.asarray, arrays(2))
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    wide = [x.astype(jnp.float32) for x in half]
    mixed = attention(*half, segments, kind="blocks", block=4)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        mixed.astype(jnp.float32), attention(*wide, segments, kind="reference", block=4), atol=0.03
    )
