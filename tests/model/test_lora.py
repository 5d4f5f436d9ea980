"""LoRA: merged equals unmerged, step 0 is the base, and the frozen base costs no gradient and no state."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import config, tree
from dynamics.errors import UserError
from dynamics.losses.sft import SFT
from dynamics.model.llama import SIZES, LlamaConfig, abstract, init
from dynamics.model.lora import IN_DIMENSIONS, Lora, attach, freeze, init_adapters, merge, thaw
from dynamics.model.sample import greedy
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for
from dynamics.train.optimizer import PRACTICE
from dynamics.train.step import init_state, make_step

TINY = LlamaConfig(
    name="tiny", vocab_size=64, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48
)
LORA = Lora(rank=4, alpha=8.0)
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
POSITIONS, SEGMENTS = jnp.tile(jnp.arange(12, dtype=jnp.int32), (2, 1)), jnp.ones((2, 12), jnp.int32)
KEY = jax.random.key(1)
WAYS = [{}, {"scan_layers": True}, {"remat": "full"}, {"remat": "dots", "scan_layers": True}]


@functools.cache
def drawn() -> dict[str, jax.Array]:
    return tree.named_leaves(jax.jit(functools.partial(init, TINY))(jax.random.key(0)))


def model_of(change):
    """The same parameters, computed in another way."""
    return tree.with_leaves(abstract(dataclasses.replace(TINY, **change)), drawn())


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
    model = model_of(change)
    adapters = trained_adapters(model)
    unmerged, merged = hidden(attach(model, adapters)), hidden(merge(model, adapters))
    # x @ w + (x @ a) @ b and x @ (w + a @ b) round in another order: 1e-7 of numbers of size 1, through 21 products.
    np.testing.assert_allclose(unmerged, merged, atol=2e-5)
    assert float(jnp.abs(unmerged - hidden(model)).max()) > 0.05


@pytest.mark.parametrize("change", [*WAYS, {"compute_dtype": "bfloat16"}], ids=str)
def test_before_training_it_is_the_base_to_the_last_bit(change):
    model = model_of(change)
    np.testing.assert_array_equal(hidden(attach(model, init_adapters(model, LORA, jax.random.key(1)))), hidden(model))


@pytest.mark.parametrize("change", [WAYS[0], WAYS[3]], ids=str)
def test_gradients_are_those_of_the_merged_weights(change):
    model = model_of(change)
    adapters = trained_adapters(model)

    def loss(together, adapters):
        return jnp.sum(jnp.sin(together(model, adapters)(TOKENS, POSITIONS, SEGMENTS)))

    apart = jax.jit(jax.grad(functools.partial(loss, attach)))(adapters)
    merged = jax.jit(jax.grad(functools.partial(loss, merge)))(adapters)
    for name, gradient in tree.named_leaves(apart).items():
        expected = tree.named_leaves(merged)[name]
        # Sums over 24 positions and 3 layers of numbers of size 1; float32 keeps 1e-7 of each.
        np.testing.assert_allclose(gradient, expected, atol=5e-5 * float(jnp.abs(expected).max()), err_msg=name)
        assert float(jnp.abs(gradient).max()) > 0


def test_only_the_named_weights_get_adapters():
    model = model_of({})
    adapters = trained_adapters(model, Lora(rank=2, alpha=2.0, targets=("value", "down")))
    assert set(adapters) == {"value", "down"}
    merged, before = tree.named_leaves(merge(model, adapters)), tree.named_leaves(model)
    changed = {name for name, leaf in merged.items() if (np.asarray(leaf) != before[name]).any()}
    assert changed == {"blocks/value", "blocks/down"}


def test_greedy_decoding_with_adapters_is_that_of_the_merged_model():
    model = model_of({"scan_layers": True})
    adapters = trained_adapters(model)
    settings = {"max_new_tokens": 6, "stop_ids": (), "pad_id": 0, "batch_size": 2, "bucket": 8}
    prompts = [[1, 2, 3], [9, 8, 7, 6, 5]]
    ours, expected = (
        greedy(attach(model, adapters), prompts, **settings),
        greedy(merge(model, adapters), prompts, **settings),
    )
    assert [one.tokens for one in ours] == [one.tokens for one in expected]
    np.testing.assert_allclose(ours[0].last_logits, expected[0].last_logits, atol=2e-5)


def test_adapters_have_the_size_that_peft_gives_them():
    # peft 0.17, LlamaForCausalLM of 7b, r=16, all seven projections: "trainable params: 39,976,960".
    shapes = jax.eval_shape(lambda key: init_adapters(abstract(SIZES["7b"]), Lora(rank=16, alpha=32.0), key), KEY)
    assert tree.num_parameters(shapes) == 39_976_960


def test_adapters_start_with_the_size_of_what_they_take_in_and_give_nothing():
    model = abstract(dataclasses.replace(TINY, d_model=128, d_ff=512))
    adapters = init_adapters(model, Lora(rank=16, alpha=16.0), KEY)
    for name, adapter in adapters.items():
        a, b = adapter.a[...], adapter.b[...]
        taken = np.prod(a.shape[1:-1])
        assert float(jnp.std(a)) == pytest.approx(taken**-0.5, rel=0.05), name
        assert not b.any()
        assert (a.dtype, b.dtype) == (jnp.float32, jnp.float32)


def test_a_base_kept_in_bfloat16_keeps_its_norms_and_rounds_its_matrices():
    model = model_of({})
    frozen = tree.named_leaves(freeze(model, dataclasses.replace(LORA, base_dtype="bfloat16")))
    assert {name for name, leaf in frozen.items() if leaf.dtype == jnp.float32} == {
        "blocks/attention_norm", "blocks/mlp_norm", "final_norm",
    }  # fmt: skip
    before = tree.named_leaves(model)
    np.testing.assert_array_equal(frozen["blocks/up"], before["blocks/up"].astype(jnp.bfloat16))


def test_a_base_kept_in_int8_is_off_by_half_a_scale_at_most_and_trains():
    pytest.importorskip("qwix", reason='Lora(base_dtype="int8") needs the package qwix')
    lora = dataclasses.replace(LORA, base_dtype="int8")
    model = model_of({"scan_layers": True})
    frozen = freeze(model, lora)
    leaves = tree.named_leaves(frozen)
    assert leaves["embedding"].dtype == jnp.float32
    thawed = tree.named_leaves(thaw(frozen, model))
    for name, index in IN_DIMENSIONS.items():
        weight = drawn()[f"blocks/{name}"]
        inputs = tuple(range(1, 1 + index))
        # Symmetric rounding to 255 values between the largest and its negative: half of max / 127.
        bound = jnp.abs(weight).max(axis=inputs, keepdims=True) / 127 / 2
        assert leaves[f"blocks/{name}/value/qvalue"].dtype == jnp.int8
        assert (jnp.abs(thawed[f"blocks/{name}"] - weight) <= bound * 1.001).all(), name
    adapters = trained_adapters(model)
    np.testing.assert_allclose(
        hidden(attach(frozen, adapters)), hidden(merge(thaw(frozen, model), adapters)), atol=2e-5
    )
    exact = hidden(attach(model, adapters))
    error = jnp.sqrt(jnp.mean((hidden(attach(frozen, adapters)) - exact) ** 2) / jnp.mean(exact**2))
    # Each weight is off by max/127/2 = 1 % of the typical one; 21 products in a row add that up.
    assert float(error) < 0.05
    with pytest.raises(UserError, match="merge into thaw"):
        merge(frozen, adapters)

    def loss(adapters):
        return jnp.sum(jnp.sin(attach(frozen, adapters)(TOKENS, POSITIONS, SEGMENTS)))

    def merged_loss(adapters):
        return jnp.sum(jnp.sin(merge(thaw(frozen, model), adapters)(TOKENS, POSITIONS, SEGMENTS)))

    expected = tree.named_leaves(jax.jit(jax.grad(merged_loss))(adapters))
    for name, gradient in tree.named_leaves(jax.jit(jax.grad(loss))(adapters)).items():
        np.testing.assert_allclose(gradient, expected[name], atol=5e-5 * float(jnp.abs(expected[name]).max()))
    placed = tree.named_leaves(shardings_for(frozen, make_mesh(MeshShape(fsdp=4, tensor=2))))
    assert tuple(placed["blocks/up/value/scale"].spec) == (None, None, "tensor")


@pytest.mark.parametrize("shape", [MeshShape(fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_adapters_are_split_as_their_weights_are_and_never_along_the_rank(shape):
    mesh = make_mesh(shape)
    model = abstract(dataclasses.replace(TINY, d_ff=64))
    adapters = init_adapters(model, LORA, KEY)
    shardings = tree.named_leaves(shardings_for(adapters, mesh))
    weights = tree.named_leaves(shardings_for(model, mesh))
    for name in LORA.targets:
        split = 1 + IN_DIMENSIONS[name]
        weight = tuple(weights[f"blocks/{name}"].spec)
        assert tuple(shardings[f"{name}/a"].spec) == (*weight[:split], None)
        assert tuple(shardings[f"{name}/b"].spec) == (weight[0], None, *weight[split:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"targets": ("query", "vlaue")}, "did you mean 'value'. known: query, key"),
        ({"targets": ("q_proj",)}, "targets 'q_proj', which no block has"),
        ({"targets": ()}, "name at least one"),
        ({"targets": ("up", "up")}, "each once"),
    ],
)
def test_bad_settings_say_what_is_allowed(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LORA, **change)


def test_settings_survive_json():
    assert config.from_json(config.to_json(LORA)) == LORA


# --- what the step's program computes


def dots(lowered) -> list[tuple[str, str, str]]:
    """(left, right, result) shapes of every matrix product of a program, such as '128x32'."""
    text = lowered.as_text()
    found = re.findall(
        r"stablehlo\.dot_general.*?: \(tensor<(\S+?)xf32>, tensor<(\S+?)xf32>\) -> tensor<(\S+?)xf32>", text
    )
    assert len(found) == text.count("stablehlo.dot_general")
    return found


def micro_batch():
    """All 24 positions, as a DeviceBatch of one micro-batch."""
    return {
        "tokens": TOKENS[None], "positions": POSITIONS[None], "segments": SEGMENTS[None],
        "trained_index": jnp.arange(24)[None, None], "trained_targets": TOKENS.reshape(1, 1, 24),
        "trained_weights": jnp.ones((1, 1, 24), jnp.float32),
    }  # fmt: skip


def test_adapters_of_a_base_in_int8_train_and_the_base_stays():
    pytest.importorskip("qwix", reason='Lora(base_dtype="int8") needs the package qwix')
    lora = dataclasses.replace(LORA, base_dtype="int8")
    state = init_state(model_of({}), PRACTICE, total_steps=6, adapter=lora, key=KEY)
    before, losses = tree.tree_digest(state.frozen), []
    for _ in range(6):
        state, metrics = make_step(SFT(), PRACTICE)(state, micro_batch())
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < losses[0] - 1.0
    assert tree.tree_digest(state.frozen) == before


@pytest.mark.parametrize(("change", "chunk"), [({}, 1024), ({}, 5), (WAYS[3], 5)], ids=str)
def test_no_product_makes_a_gradient_of_a_frozen_weight(change, chunk):
    model = model_of(change)
    batch = micro_batch()
    step = make_step(SFT(chunk=chunk), PRACTICE)
    state = init_state(model, PRACTICE, total_steps=2, adapter=Lora(rank=3, alpha=3.0), key=KEY)
    made = [result for _, _, result in dots(step.lower(state, batch))]
    shapes = {leaf.shape for name, leaf in tree.named_leaves(model).items() if "norm" not in name}
    frozen = {(int(np.prod(shape[1 : 1 + n])), int(np.prod(shape[1 + n :]))) for shape in shapes for n in (1, 2)}
    frozen |= {(32, 64), (64, 32)}  # the untied head
    gradients = {f"{rows}x{columns}" for rows, columns in frozen}
    assert not gradients & set(made)
    # The same look at full training finds them: the test can fail.
    whole = init_state(jax.tree.map(jnp.copy, model), PRACTICE, total_steps=2)
    assert gradients & {result for _, _, result in dots(step.lower(whole, batch))} >= {"32x48", "48x32", "32x64"}
