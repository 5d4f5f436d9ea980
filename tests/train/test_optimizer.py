"""Optimizers: the schedule by hand, AdamW against optax and against the paper, what is decayed, optax's others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import config, tree
from dynamics.errors import UserError
from dynamics.model.llama import abstract
from dynamics.train.optimizer import DOIT, OPTIMIZERS, PRACTICE, AdamW, Custom, Optimizer
from train.tiny import MODEL

SETTINGS = {"peak_lr": 1.0, "end_lr": 0.1, "schedule": "linear"}
LION = Custom(factory="optax:lion", arguments=(("b1", 0.9), ("b2", 0.99), ("weight_decay", 0.1)), **SETTINGS)
MEMBERS = (*OPTIMIZERS, LION, Custom(factory="optax:scale_by_rms", clip=1.0, **SETTINGS))


def params() -> dict[str, jax.Array]:
    return {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "norm": jnp.array([1.0, 1.0]), "bias": jnp.array([0.5])}


def gradients(step: int, size: float) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(step), 3)
    return {name: size * jax.random.normal(k, p.shape) for k, (name, p) in zip(keys, params().items(), strict=True)}


@pytest.mark.parametrize("optimizer", MEMBERS, ids=lambda o: f"{type(o).__name__}-{o.peak_lr}")
def test_every_optimizer_survives_json_and_makes_a_quadratic_smaller(optimizer):
    assert config.from_json(config.to_json(optimizer)) == optimizer
    optimizer = dataclasses.replace(optimizer, peak_lr=0.05, end_lr=0.01)
    transform = optimizer.transform()
    point, state = params(), transform.init(params())
    for step in range(40):
        direction, state = transform.update(point, state, point)  # the gradient of half the squared norm
        rate = optimizer.learning_rate(step, 40)
        point = jax.tree.map(lambda p, d, rate=rate: p - rate * d, point, direction)
    assert optax.tree.norm(point) < 0.8 * optax.tree.norm(params())


@pytest.mark.parametrize("size", [0.01, 100.0], ids=["unclipped", "clipped"])
def test_adamw_in_one_pass_equals_the_optax_chain(size):
    fused, chain = PRACTICE.transform(), Optimizer.transform(PRACTICE)
    state, chain_state = fused.init(params()), chain.init(params())
    for step in range(4):
        given = gradients(step, size)
        direction, state = fused.update(given, state, params())
        expected, chain_state = chain.update(given, chain_state, params())
        for name in expected:
            np.testing.assert_allclose(direction[name], expected[name], rtol=2e-6, atol=1e-7)


def test_moments_in_bfloat16_are_those_in_float32_rounded_for_keeping():
    half = dataclasses.replace(PRACTICE, moment_dtype="bfloat16").transform()
    state, exact = half.init(params()), PRACTICE.transform().init(params())
    for step in range(3):
        given = gradients(step, 1.0)
        wide = jax.tree.map(lambda moment: moment.astype(jnp.float32), state)  # goes on from what was kept
        expected, exact = PRACTICE.transform().update(given, wide._replace(count=exact.count), params())
        direction, state = half.update(given, state, params())
        for name, leaf in tree.named_leaves((state.mu, state.nu)).items():
            assert leaf.dtype == jnp.bfloat16
            rounded = tree.named_leaves((exact.mu, exact.nu))[name].astype(jnp.bfloat16)
            np.testing.assert_array_equal(leaf, rounded)
        for name in expected:
            np.testing.assert_array_equal(direction[name], expected[name])


def test_a_moment_in_bfloat16_that_could_never_shrink_is_refused():
    kept = jnp.asarray(1.0 + 2**-7, jnp.bfloat16)
    assert (kept.astype(jnp.float32) * 0.999).astype(jnp.bfloat16) == kept
    with pytest.raises(UserError, match=r"times 0\.999 rounds back to itself.*up to 0\.9961"):
        dataclasses.replace(PRACTICE, b2=0.999, moment_dtype="bfloat16")
    for value in jnp.linspace(1.0, 2.0, 128, endpoint=False).astype(jnp.bfloat16):
        assert (value.astype(jnp.float32) * PRACTICE.b2).astype(jnp.bfloat16) < value


def test_adamw_matches_the_paper():
    optimizer = dataclasses.replace(DOIT, clip=None)
    gradient, weight = 0.3, 2.0
    direction, _ = optimizer.transform().update(
        {"w": jnp.array([gradient])}, optimizer.transform().init({"w": jnp.array([weight])}), {"w": jnp.array([weight])}
    )
    # Loshchilov and Hutter 2019, algorithm 2, first step: both moments debiased are the gradient and its square.
    np.testing.assert_allclose(direction["w"], gradient / (abs(gradient) + 1e-8) + 0.1 * weight, rtol=1e-6)


def test_decay_leaves_out_norms_and_biases_and_nothing_else():
    mask = tree.named_leaves(PRACTICE.decayed(abstract(MODEL)))
    assert {name for name, decayed in mask.items() if not decayed} == {
        "blocks/attention_norm", "blocks/mlp_norm", "final_norm",
    }  # fmt: skip
    assert mask["embedding"]
    assert PRACTICE.decayed(params()) == {"w": True, "norm": False, "bias": False}


def test_the_doit_preset_runs_from_1e_5_towards_1e_6_without_warm_up():
    rates = np.array([DOIT.learning_rate(step, 2355) for step in (0, 1, 2354)])
    expected = [1e-5, 1e-6 + 9e-6 * (1 - 1 / 2355), 1e-6 + 9e-6 / 2355]  # HF's polynomial schedule of power 1
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert (DOIT.b1, DOIT.b2, DOIT.weight_decay, DOIT.clip) == (0.9, 0.95, 0.1, 1.0)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_schedules_rise_through_the_warm_up_and_end_where_they_should(schedule, middle, end):
    optimizer = AdamW(
        peak_lr=1.0, end_lr=0.1, schedule=schedule, warmup_steps=2, warmup_share=0.02, b1=0.9, b2=0.95, eps=1e-8,
        weight_decay=0.0,
    )  # fmt: skip
    rates = [float(optimizer.learning_rate(step, 100)) for step in (0, 1, 3, 4, 52, 100)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 1.0, 1.0, middle, end], rtol=1e-5)


def test_a_whole_optax_optimizer_is_its_own_update_at_any_learning_rate():
    whole = optax.lion(0.03, b1=0.9, b2=0.99, weight_decay=0.1, mask=LION.decayed)
    expected, _ = whole.update(gradients(0, 1.0), whole.init(params()), params())
    transform = LION.transform()
    direction, _ = transform.update(gradients(0, 1.0), transform.init(params()), params())
    for name in expected:
        np.testing.assert_allclose(-0.03 * direction[name], expected[name], rtol=1e-6)


def test_a_direction_of_optax_is_taken_uphill():
    sign = Custom(factory="optax:scale_by_sign", **SETTINGS).transform()
    direction, _ = sign.update({"w": jnp.array([-3.0, 2.0])}, sign.init({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(direction["w"], [-1.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end_lr": 2.0}, "0 <= end_lr <= peak_lr"),
        ({"warmup_share": 1.0}, "warmup_share from 0"),
        ({"clip": 0.0}, "None for no clipping"),
        ({"factory": "optax:lyon"}, "write module:function"),
        ({"factory": "optax"}, "write module:function"),
        ({"arguments": (("beta", 1.0),)}, "'beta'; it takes b1, b2"),
        ({"arguments": (("learning_rate", 1.0),)}, "peak_lr"),
    ],
)
def test_bad_settings_say_what_is_allowed(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LION, **change)
