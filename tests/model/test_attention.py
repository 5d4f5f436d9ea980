"""Every kernel equals the definition, forward and backward, and keeps segments apart; the platform chooses one."""

import functools

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from dynamics.errors import UserError
from dynamics.model import attention as module
from dynamics.model.attention import kernel_for
from dynamics.model.sharding import MESH_AXES, MeshShape, activate, make_mesh

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


# Those that run here; Splash interpreted. Its channels are in 64s, and 384 positions are three of its tiles.
KERNELS = ("reference", "blocks", "fused", "splash")
LONG = np.array([[1] * 100 + [2] * 200 + [0] * 84, [1] * 30 + [0] * 10 + [2] * 344], np.int32)


@functools.cache
def long_arrays():
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=(2, 384, heads, 64)), jnp.float32) for heads in (2, 1, 1))


@functools.cache
def mixed_and_gradients(kernel):
    """What the kernel gives, and how a weighted sum of it changes with query, key and value."""
    weight = jnp.sin(jnp.arange(2 * 384 * 2 * 64, dtype=jnp.float32)).reshape(2, 384, 2, 64)

    def total(*qkv):
        mixed = module.attention(*qkv, jnp.asarray(LONG), kind=kernel, block=192)
        return jnp.sum(weight * mixed), mixed

    gradients, mixed = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*long_arrays())
    return mixed, *gradients


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_every_kernel_equals_the_definition_forward_and_backward(kernel):
    for mine, oracle in zip(mixed_and_gradients(kernel), mixed_and_gradients("reference"), strict=True):
        np.testing.assert_allclose(mine, oracle, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_changed_segment_leaves_every_other_bit_as_it_was(kernel):
    before = attention(*long_arrays(), jnp.asarray(LONG), kind=kernel, block=192)
    inside = (LONG == 1) & (np.arange(2)[:, None] == 0)
    changed = (jnp.where(inside[..., None, None], x[..., ::-1] + 1, x) for x in long_arrays())
    after = attention(*changed, jnp.asarray(LONG), kind=kernel, block=192)
    np.testing.assert_array_equal(np.asarray(after)[~inside], np.asarray(before)[~inside])
    assert np.abs(np.asarray(after - before)[inside]).min(axis=(-1, -2)).max() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_output_depends_on_the_past_of_its_own_segment_only(kernel):
    row, at = 1, 300  # in segment 2, which starts at 40

    def one(query, key, value):
        return jnp.sum(module.attention(query, key, value, jnp.asarray(LONG), kind=kernel, block=192)[row, at])

    for gradient in jax.jit(jax.grad(one, argnums=(1, 2)))(*long_arrays()):
        depends = np.abs(gradient).max(axis=(-1, -2)) > 0
        expected = np.zeros_like(depends)
        expected[row, 40 : at + 1] = True
        np.testing.assert_array_equal(depends, expected)


@pytest.mark.parametrize("shape", [MeshShape(data=2, sequence=2), MeshShape(tensor=2)], ids=str)
def test_splash_on_a_mesh_equals_splash_on_one_device(shape):
    mesh = make_mesh(shape)

    @jax.jit
    def spread(*qkv):
        with activate(mesh):
            return module.attention(*qkv, jnp.asarray(LONG), kind="splash", block=192)

    placed = jax.device_put(long_arrays(), NamedSharding(mesh, PartitionSpec()))
    np.testing.assert_allclose(spread(*placed), mixed_and_gradients("splash")[0], atol=1e-6)


def test_heads_that_do_not_divide_over_the_mesh_are_refused_with_the_mesh_that_works():
    with (
        activate(make_mesh(MeshShape(sequence=2, tensor=2))),
        pytest.raises(UserError, match=r"2 heads, not divisible by mesh axis tensor x sequence of size 4; .* of 2"),
    ):
        module.attention(*long_arrays(), jnp.asarray(LONG), kind="auto", block=192)


@pytest.mark.parametrize(
    ("platform", "length", "head_dim", "dtype", "kernel"),
    [
        ("cpu", 2048, 128, "bfloat16", "blocks"),
        ("tpu", 2048, 128, "bfloat16", "splash"),
        ("tpu", 256, 64, "float32", "splash"),
        ("tpu", 200, 128, "bfloat16", "fused"),
        ("tpu", 256, 32, "bfloat16", "fused"),
        ("gpu", 2048, 128, "bfloat16", "cudnn"),
        ("gpu", 2048, 128, "float32", "fused"),
        ("gpu", 2048, 256, "bfloat16", "fused"),
        ("another", 2048, 128, "bfloat16", "fused"),
    ],
)
def test_auto_takes_the_platforms_own_kernel_where_it_fits(platform, length, head_dim, dtype, kernel):
    assert kernel_for("auto", platform=platform, length=length, head_dim=head_dim, dtype=dtype) == kernel


@pytest.mark.parametrize(
    ("kind", "platform", "length", "message"),
    [
        ("splash", "tpu", 200, "'splash' needs a length in 128s and a head_dim in 64s, and was given length 200"),
        ("cudnn", "cpu", 256, "'cudnn' runs on gpu, not on cpu; use attention='auto'"),
        ("cudnn", "gpu", 256, "'cudnn' computes in bfloat16 or float16, not float32"),
    ],
)
def test_a_kernel_asked_for_by_name_is_never_replaced(kind, platform, length, message):
    with pytest.raises(UserError, match=message):
        kernel_for(kind, platform=platform, length=length, head_dim=64, dtype="float32")


def lowered(platform, target):
    """The gradient program of packed bfloat16 rows for a device that is not here."""
    device = AbstractDevice(device_kind="a described device", num_cores=None, platform=platform)
    one = AbstractMesh((1,) * 5, MESH_AXES, axis_types=(AxisType.Auto,) * 5, abstract_device=device)

    def total(query, key, value, segments):
        with jax.sharding.use_abstract_mesh(one):
            return module.attention(query, key, value, segments, kind="auto", block=192).astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct((2, 256, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*shapes, jax.ShapeDtypeStruct((2, 256), jnp.int32))
    return traced.lower(lowering_platforms=(target,)).as_text()


def test_the_program_for_tpu_holds_the_splash_kernel_forward_and_backward():
    assert lowered("tpu", "tpu").count("@tpu_custom_call") == 3  # mixing; gradients of queries; of keys and values


def test_the_program_for_gpu_gives_cudnn_the_segments_as_a_bias(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)  # no cuDNN is installed here
    program = lowered("gpu", "cuda")
    calls = [line for line in program.splitlines() if "custom_call @__cudnn$fmha" in line]
    assert [line.split("@__cudnn$")[1].split("(")[0] for line in calls] == [
        "fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward",
    ]  # fmt: skip
    assert all("tensor<2x1x256x256xbf16>" in line for line in calls)
