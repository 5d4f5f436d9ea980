"""LoRA: merged equals unmerged, step 0 is the base, and the frozen base costs no gradient and no state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import tree
from dynamics.model.llama import LlamaConfig, init
from dynamics.model.lora import Lora, attach, init_adapters, merge

TINY = LlamaConfig(
    name="tiny", vocab_size=64, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48
)
LORA = Lora(rank=4, alpha=8.0)
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
POSITIONS, SEGMENTS = jnp.tile(jnp.arange(12, dtype=jnp.int32), (2, 1)), jnp.ones((2, 12), jnp.int32)
WAYS = [{}, {"scan_layers": True}, {"remat": "full"}, {"remat": "dots", "scan_layers": True}]


def trained_adapters(model, lora=LORA):
    """Adapters as after some training: `b` is no longer zero, and large enough to matter."""
    adapters = init_adapters(model, lora, jax.random.key(1))
    leaves = tree.named_leaves(adapters)
    for number, (name, leaf) in enumerate(leaves.items()):
        if name.endswith("/b"):
            leaves[name] = 0.05 * jax.random.normal(jax.random.key(number), leaf.shape)
    return tree.with_leaves(adapters, leaves)


@jax.jit
def hidden(model):
    return model(TOKENS, POSITIONS, SEGMENTS)


@pytest.mark.parametrize("change", WAYS, ids=str)
def test_merged_equals_unmerged_and_differs_from_the_base(change):
    model = init(dataclasses.replace(TINY, **change), jax.random.key(0))
    adapters = trained_adapters(model)
    unmerged, merged = hidden(attach(model, adapters)), hidden(merge(model, adapters))
    # x @ w + (x @ a) @ b and x @ (w + a @ b) round in another order: float32 sums of 48 products in 21 weights.
    np.testing.assert_allclose(unmerged, merged, atol=2e-5)
    assert float(jnp.abs(unmerged - hidden(model)).max()) > 0.05


def test_before_training_it_is_the_base_to_the_last_bit():
    model = init(TINY, jax.random.key(0))
    np.testing.assert_array_equal(hidden(attach(model, init_adapters(model, LORA, jax.random.key(1)))), hidden(model))
