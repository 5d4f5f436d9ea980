"""Shapes, counts, rotary positions, and the ways to run the same blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.errors import UserError
from dynamics.model.llama import (
    SIZES,
    LinearScaling,
    Llama3Scaling,
    LlamaConfig,
    abstract,
    init,
    rope_frequencies,
    rotate,
)
from dynamics.tree import named_leaves, num_parameters

TINY = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24
)
TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
POSITIONS, SEGMENTS = jnp.tile(jnp.arange(6, dtype=jnp.int32), (2, 1)), jnp.ones((2, 6), jnp.int32)


@pytest.mark.parametrize(("size", "billions"), [("7b", 6.74), ("13b", 13.02), ("33b", 32.53), ("65b", 65.29)])
def test_published_sizes_have_the_published_number_of_parameters(size, billions):
    assert round(num_parameters(abstract(SIZES[size])) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("size", "millions"), [("0.2m", 0.2545), ("0.6m", 0.65), ("1.5m", 1.54), ("4m", 3.9), ("10m", 10.2)]
)
def test_small_sizes_are_what_their_names_say(size, millions):
    assert num_parameters(abstract(SIZES[size])) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    "change", [{"scan_layers": True}, {"remat": "full"}, {"remat": "dots"}, {"scan_layers": True, "remat": "dots"}]
)
def test_scan_and_rematerialisation_change_no_value(change):
    def gradient(config):
        def total(model):
            return jnp.sum(jnp.sin(model(TOKENS, POSITIONS, SEGMENTS)))

        return jax.jit(jax.value_and_grad(total))(init(config, jax.random.key(0)))

    (value, grads), (expected, expected_grads) = gradient(dataclasses.replace(TINY, **change)), gradient(TINY)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name, leaf in named_leaves(grads).items():
        np.testing.assert_allclose(leaf, named_leaves(expected_grads)[name], atol=1e-5, err_msg=name)


def test_the_module_is_a_plain_pytree_for_grad_vmap_eval_shape_and_optax():
    model = jax.jit(init, static_argnums=0)(TINY, jax.random.key(0))
    assert jax.tree.structure(abstract(TINY)) == jax.tree.structure(model)
    optimizer = optax.adamw(1e-3)
    grads = jax.jit(jax.grad(lambda m: m(TOKENS, POSITIONS, SEGMENTS).sum()))(model)
    updates, _ = optimizer.update(grads, optimizer.init(model), model)
    changed = optax.apply_updates(model, updates)
    assert jax.tree.structure(changed) == jax.tree.structure(model)
    population = jax.jit(jax.vmap(lambda key: init(TINY, key)))(jax.random.split(jax.random.key(0), 3))
    hidden = jax.jit(jax.vmap(lambda m: m(TOKENS, POSITIONS, SEGMENTS)))(population)
    assert hidden.shape == (3, 2, 6, 16)


def test_same_key_same_model_and_head_follows_tied_head():
    first, second = (init(TINY, jax.random.key(5)) for _ in range(2))
    for name, leaf in named_leaves(first).items():
        np.testing.assert_array_equal(leaf, named_leaves(second)[name])
    tied = init(dataclasses.replace(TINY, tied_head=True), jax.random.key(5))
    np.testing.assert_array_equal(tied.head, tied.embedding[...].T)
    assert num_parameters(first) - num_parameters(tied) == 32 * 16


def test_rotation_pairs_halves_and_keeps_relative_positions():
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    frequencies = 10_000.0 ** -(np.arange(4) / 4)
    angle = 3 * frequencies
    expected = np.concatenate(
        [x[:4] * np.cos(angle) - x[4:] * np.sin(angle), x[4:] * np.cos(angle) + x[:4] * np.sin(angle)]
    )
    rotated = rotate(jnp.asarray(x)[None, None], jnp.cos(angle)[None], jnp.sin(angle)[None])
    np.testing.assert_allclose(rotated[0, 0], expected, rtol=1e-5)


def test_linear_scaling_divides_and_llama3_scaling_blends():
    plain = rope_frequencies(dataclasses.replace(TINY, head_dim=64))
    linear = rope_frequencies(dataclasses.replace(TINY, head_dim=64, rope_scaling=LinearScaling(factor=4.0)))
    np.testing.assert_allclose(linear, plain / 4)
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    config = dataclasses.replace(TINY, head_dim=64, rope_theta=500_000.0)
    before, after = rope_frequencies(config), rope_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    for slow, new in zip(before, after, strict=True):  # the release's three cases
        wavelength = 2 * math.pi / slow
        if wavelength < 8192 / 4:
            assert new == pytest.approx(slow)
        elif wavelength > 8192 / 1:
            assert new == pytest.approx(slow / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            assert new == pytest.approx((1 - smooth) * slow / 8 + smooth * slow)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model is 0; give a whole number >= 1"),
        ({"num_heads": 3}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"head_dim": 5}, "head_dim is 5; rotary positions need an even number"),
        ({"param_dtype": "float8"}, "param_dtype is 'float8'; known: float32, bfloat16, float16"),
        ({"remat": "some"}, "remat is 'some'; known: none, full, dots"),
        ({"attention": "flash"}, "attention is 'flash'; known: auto, reference, blocks, fused"),
    ],
)
def test_bad_settings_say_what_is_allowed(change, message):
    config = dataclasses.replace(TINY)
    for name, value in change.items():  # past the type checker of the tests, as a config file without one would
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message):
        config.__post_init__()
