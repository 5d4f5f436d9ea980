"""LLaMA: settings, named sizes, and the network as a plain pytree.

Dimensions: b batch, l length, n flattened b*l, d model, h heads, k key/value heads, c head channels, f feed-forward,
v vocabulary. Parameters of all blocks are stacked along a leading dimension `layers`, so that depth is a number and
not a structure: the same arrays run scanned or unrolled, and lie on disk in one way.

Source: Touvron et al. 2023 (LLaMA); grouped queries from Ainslie et al. 2023.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dynamics.errors import UserError
from dynamics.model.attention import KINDS, MIXED, Kernel, Kind, attention, kernel_for
from dynamics.model.sharding import constrain, length_is_split

DTYPES = ("float32", "bfloat16", "float16")

# What the backward pass finds and need not compute again: see `rematerialised` and `saved_bytes_per_token`.
Remat = Literal["none", "full", "dots", "attention", "qkv", "mlp", "offload"]
REMATS: tuple[Remat, ...] = get_args(Remat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are changed to reach longer contexts than the model was trained on."""

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling(RopeScaling):
    """Every position is divided by `factor`. Source: Chen et al. 2023 (position interpolation)."""

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RopeScaling):
    """Slow frequencies are divided by `factor`, fast ones kept, those between blended. Source: Llama 3.1's release."""

    low_freq_factor: float
    high_freq_factor: float
    original_length: int  # tokens, the context of the first training

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * np.pi)  # turns within the original context
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return (1 - blend) * frequencies / self.factor + blend * frequencies


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model and how it is computed. Sizes come from SIZES; change fields with dataclasses.replace."""

    name: str  # a label, shown in reports
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    tied_head: bool = False
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: Remat = "none"
    scan_layers: bool = False
    attention: Kind = "auto"
    attention_block: int = 128  # queries per block of the "blocks" attention

    def __post_init__(self) -> None:
        counts = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        for field in (*counts, "attention_block"):
            if getattr(self, field) < 1:
                raise UserError(f"model {self.name!r}: {field} is {getattr(self, field)}; give a whole number >= 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model {self.name!r}: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}; each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise UserError(f"model {self.name!r}: head_dim is {self.head_dim}; rotary positions need an even number")
        for field in ("param_dtype", "compute_dtype"):
            if getattr(self, field) not in DTYPES:
                raise UserError(f"model {self.name!r}: {field} is {getattr(self, field)!r}; known: {', '.join(DTYPES)}")
        for field, known in (("remat", REMATS), ("attention", KINDS)):
            if getattr(self, field) not in known:
                raise UserError(f"model {self.name!r}: {field} is {getattr(self, field)!r}; known: {', '.join(known)}")


def _small(name: str, *, d_model: int, num_layers: int, head_dim: int, d_ff: int) -> LlamaConfig:
    heads = d_model // head_dim
    return LlamaConfig(
        name=name, vocab_size=1024, d_model=d_model, num_layers=num_layers, num_heads=heads, num_kv_heads=heads,
        head_dim=head_dim, d_ff=d_ff, tied_head=True, attention_block=64,
    )  # fmt: skip


def _published(name: str, *, d_model: int, num_layers: int, num_heads: int, d_ff: int) -> LlamaConfig:
    return LlamaConfig(
        name=name, vocab_size=32_000, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=128, d_ff=d_ff, compute_dtype="bfloat16", remat="dots", scan_layers=True,
    )  # fmt: skip


# Small sizes are ours (vocabulary 1,024 until the study sets its own); 7b to 65b are Table 2 of the LLaMA paper.
SIZES: dict[str, LlamaConfig] = {
    config.name: config
    for config in (
        _small("0.1m", d_model=48, num_layers=3, head_dim=16, d_ff=128),
        _small("0.2m", d_model=64, num_layers=4, head_dim=16, d_ff=160),
        _small("0.6m", d_model=96, num_layers=5, head_dim=16, d_ff=256),
        _small("1.5m", d_model=128, num_layers=7, head_dim=32, d_ff=352),
        _small("4m", d_model=224, num_layers=6, head_dim=32, d_ff=608),
        _small("10m", d_model=320, num_layers=8, head_dim=32, d_ff=864),
        _published("7b", d_model=4096, num_layers=32, num_heads=32, d_ff=11_008),
        _published("13b", d_model=5120, num_layers=40, num_heads=40, d_ff=13_824),
        _published("33b", d_model=6656, num_layers=60, num_heads=52, d_ff=17_920),
        _published("65b", d_model=8192, num_layers=80, num_heads=64, d_ff=22_016),
    )
}


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each channel pair, [head_dim / 2], float64."""
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-half
    return frequencies if config.rope_scaling is None else config.rope_scaling(frequencies)


def rope_angles(config: LlamaConfig, positions: Int[Array, "..."]) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles, [..., head_dim / 2], float32."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(rope_frequencies(config), jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "... heads c"], cos: Array, sin: Array) -> Array:
    """Turn channel pairs (i, i + c/2) by the position's angles.

    Meta's weights interleave the pairs; ours, like HF's, are halves.
    """
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float) -> Array:
    """x over its root mean square (float32), times `scale`; the result has the dtype of x."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Adapter(nnx.Module):
    """A low-rank addition to one weight of all layers: x @ (weight + scale * a @ b), computed without that sum.

    The weight's own dimensions come back in `a` (those it takes in) and `b` (those it gives out); see `model/lora.py`.
    """

    def __init__(
        self, a: Array, b: Array, *, scale: float, in_axes: tuple[str, ...], out_axes: tuple[str, ...]
    ) -> None:
        self.a = nnx.Param(a, logical_axes=("layers", *in_axes, "rank"))
        self.b = nnx.Param(b, logical_axes=("layers", "rank", *out_axes))
        self.scale = scale

    def __call__(self, x: Float[Array, "*rows d"]) -> Array:
        """The addition to x @ weight, for one layer; the scale goes where the numbers are few."""
        narrow = dense(x, self.a[...].reshape(x.shape[-1], -1))
        return dense(narrow * self.scale, self.b[...])


class Block(nnx.Module):
    """One layer, or a stack of them: every parameter carries its layer as first dimension until it is scanned over."""

    def __init__(self, config: LlamaConfig, key: Array) -> None:
        layers, d, f, c = config.num_layers, config.d_model, config.d_ff, config.head_dim
        h, k = config.num_heads, config.num_kv_heads
        keys = iter(jax.random.split(key, 7))

        def weight(shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, gain: float = 1.0) -> nnx.Param:
            value = jax.random.normal(next(keys), (layers, *shape), jnp.float32) * (gain * fan_in**-0.5)
            return nnx.Param(value.astype(config.param_dtype), logical_axes=("layers", *axes))

        def scale() -> nnx.Param:
            return nnx.Param(jnp.ones((layers, d), config.param_dtype), logical_axes=("layers", "norm"))

        # The two products that write to the residual stream start smaller, so that depth does not blow it up.
        out_gain = (2 * layers) ** -0.5
        self.attention_norm = scale()
        self.query = weight((d, h, c), ("embed", "heads", "head_dim"), d)
        self.key = weight((d, k, c), ("embed", "kv_heads", "head_dim"), d)
        self.value = weight((d, k, c), ("embed", "kv_heads", "head_dim"), d)
        self.output = weight((h, c, d), ("heads", "head_dim", "embed"), h * c, out_gain)
        self.mlp_norm = scale()
        self.gate = weight((d, f), ("embed", "mlp"), d)
        self.up = weight((d, f), ("embed", "mlp"), d)
        self.down = weight((f, d), ("mlp", "embed"), f, out_gain)
        self.adapters: Mapping[str, Adapter] = nnx.data({})
        self.config = config


class Llama(nnx.Module):
    """Tokens to hidden states; `head` turns hidden states into logits. A pytree: every jax transform works on it."""

    def __init__(self, config: LlamaConfig, key: Array) -> None:
        embed_key, head_key, block_key = jax.random.split(key, 3)
        v, d, dtype = config.vocab_size, config.d_model, config.param_dtype

        def normal(key: Array, shape: tuple[int, int], axes: tuple[str, str]) -> nnx.Param:
            return nnx.Param((jax.random.normal(key, shape) * d**-0.5).astype(dtype), logical_axes=axes)

        self.embedding = normal(embed_key, (v, d), ("vocab", "table"))
        self.blocks = Block(config, block_key)
        self.final_norm = nnx.Param(jnp.ones(d, dtype), logical_axes=("norm",))
        self.untied_head = None if config.tied_head else normal(head_key, (d, v), ("table", "vocab"))
        self.config = config

    @property
    def head(self) -> Float[Array, "d v"]:
        """The matrix from hidden states to logits."""
        return self.embedding[...].T if self.untied_head is None else self.untied_head[...]

    def with_adapters(self, adapters: Mapping[str, Adapter]) -> "Llama":
        """A model of the same arrays in which these adapters are added to the block weights of their names."""
        leaves, structure = jax.tree.flatten(self)
        model = jax.tree.unflatten(structure, leaves)
        model.blocks.adapters = nnx.data(dict(adapters))
        return model

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        positions: Int[Array, "b l"],
        segments: Int[Array, "b l"],
        index: Int[Array, "g n"] | None = None,
        branches: Int[Array, "b l"] | None = None,
    ) -> Float[Array, "b l d"] | Float[Array, "g n d"]:
        """Hidden states after the final norm, in the compute dtype. Segment 0 is padding: finite, seen by nobody.

        With `index`, those of the positions it lists alone: the rows are g equal groups, and an entry is row within the
        group * l + position. Layers that are not scanned save work by it: what follows attention in the last one is
        computed for these positions only. In a scan all layers are one program, so there they are picked at the end.
        With `branches`, a segment is a prompt (branch 0) and replies that see it and not each other; the positions of
        each go on from the prompt's. The first token of every reply is predicted at the prompt's last position.
        """
        config = self.config
        # Rows of the table are looked up whole: one split over `embed` would come back laid out by channels, and every
        # device would rebuild the whole activation to lay it out by rows.
        table = constrain(self.embedding[...], ("vocab", "channels"))
        x = jnp.take(table, tokens, axis=0).astype(config.compute_dtype)
        # First whole (each device finds the tokens of its part of the vocabulary), then each its part of the positions.
        x = constrain(constrain(x, ("batch", "whole_length", "channels")), ("batch", "length", "channels"))
        rope = rope_angles(config, positions)

        def run(x: Array, block: Block, index: Array | None = None) -> tuple[Array, None]:
            return apply_block(block, x, rope, segments, index, branches), None

        run = rematerialised(run, config)
        if config.scan_layers:
            x, _ = jax.lax.scan(run, x, self.blocks)
        else:
            *blocks, last = unstacked(self.blocks, config.num_layers)
            for block in blocks:
                x, _ = run(x, block)
            x, _ = run(x, last, index)
            if index is not None:
                return rms_norm(x, self.final_norm[...], config.rms_eps)
        # Whole rows again: the trained positions of a row may lie anywhere in it.
        x = constrain(rms_norm(x, self.final_norm[...], config.rms_eps), ("batch", "whole_length", "channels"))
        return x if index is None else picked(x, index)


def picked(x: Float[Array, "b l ..."], index: Int[Array, "g n"]) -> Float[Array, "g n ..."]:
    """The positions that `index` lists, of each of g equal groups of rows."""
    whole = constrain(x.reshape(*x.shape[:2], -1), ("batch", "whole_length", "channels"))
    grouped = whole.reshape(index.shape[0], -1, whole.shape[-1])
    return jnp.take_along_axis(grouped, index[..., None], axis=1).reshape(*index.shape, *x.shape[2:])


def apply_block(
    block: Block,
    x: Float[Array, "b l d"],
    rope: tuple[Array, Array],
    segments: Int[Array, "b l"],
    index: Int[Array, "g n"] | None = None,
    branches: Int[Array, "b l"] | None = None,
) -> Float[Array, "b l d"] | Float[Array, "g n d"]:
    """One layer: attention and SwiGLU, each normed before and added to the residual stream.

    With `index`, the result at those positions alone (see `Llama.__call__`); keys and values are always made for all.
    """
    config = block.config
    x = checkpoint_name(x, "block_input")
    query, key, value = project_qkv(block, x, rope)
    # Said for the products before and after attention: every position's are made where the position lies.
    query = constrain(query, ("batch", "length", "heads", "head_dim"))
    key, value = (constrain(x, ("batch", "length", "kv_heads", "head_dim")) for x in (key, value))
    mixed = attention(
        query, key, value, segments, kind=config.attention, block=config.attention_block, branches=branches
    )
    mixed = constrain(mixed, ("batch", "length", "heads", "head_dim"))
    if index is not None:
        return finish_block(block, picked(x, index), picked(mixed, index))
    return constrain(finish_block(block, x, mixed), ("batch", "length", "channels"))


def project_qkv(block: Block, x: Float[Array, "b l d"], rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """Rotated queries [b, l, h, c], rotated keys [b, l, k, c] and values [b, l, k, c]."""
    normed = rms_norm(x, block.attention_norm[...], block.config.rms_eps)
    query, key, value = (weighted(block, name, normed) for name in ("query", "key", "value"))
    return rotate(query, *rope), rotate(key, *rope), value


def finish_block(block: Block, x: Float[Array, "*rows d"], mixed: Float[Array, "*rows h c"]) -> Array:
    """Everything after the mixing, which is position by position: output product, residuals, SwiGLU."""
    mixed = mixed.reshape(*mixed.shape[:-2], -1)
    x = x + weighted(block, "output", mixed)
    normed = rms_norm(x, block.mlp_norm[...], block.config.rms_eps)
    wide = jax.nn.silu(weighted(block, "gate", normed)) * weighted(block, "up", normed)
    return x + weighted(block, "down", wide)


def weighted(block: Block, name: str, x: Float[Array, "*rows d"]) -> Array:
    """x times the block's weight of that name, and what its adapter adds where it has one."""
    weight = getattr(block, name)[...]

    def product_of(x: Array, weight: Any) -> Array:
        wide = floats(weight)
        return dense(x, wide.reshape(-1, wide.shape[-1]) if name == "output" else wide)

    # Floats of an int8 weight are made again for the backward pass: kept, they would take the bytes that it saves.
    product = (jax.checkpoint(product_of) if is_rounded(weight) else product_of)(x, weight)
    return checkpoint_name(product + block.adapters[name](x) if name in block.adapters else product, name)


def is_rounded(weight: Any) -> bool:
    """Whether a weight is kept as whole numbers (`qvalue`) and scales; see `base_dtype` in `model/lora.py`."""
    return not isinstance(weight, nnx.Param) and hasattr(weight, "qvalue")  # a Param answers for what it holds


def floats(weight: Any) -> Array:
    """The numbers of a weight, however it is kept."""
    return weight.qvalue * weight.scale if is_rounded(weight) else weight


def dense(x: Float[Array, "*rows d"], weight: Float[Array, "d ..."]) -> Float[Array, "..."]:
    """x @ weight over the last dimension of x, in the dtype of x, as one flat matrix product.

    Flat because XLA's CPU matrix product is up to 1.5 times slower on inputs of three dimensions. Not flat where a mesh
    splits the positions of a row: part of every row is no range of the flat dimension, and the rows would be gathered.
    """
    rows = x if length_is_split() else x.reshape(-1, x.shape[-1])
    flat = rows @ weight.reshape(weight.shape[0], -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *weight.shape[1:])


def unstacked(blocks: Block, num_layers: int) -> list[Block]:
    """One Block per layer. By lax.split, whose gradient is one concatenation instead of a padded sum per layer."""
    leaves, structure = jax.tree.flatten(blocks)
    pieces = [jax.lax.split(leaf, (1,) * num_layers) for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[i].squeeze(0) for p in pieces]) for i in range(num_layers)]


def rematerialised(run: Callable, config: LlamaConfig) -> Callable:
    """`run` that keeps for its backward pass what `config.remat` names, and computes the rest a second time."""
    policies = jax.checkpoint_policies
    named = policies.save_only_these_names
    policy = {
        "full": policies.nothing_saveable,
        "attention": named(MIXED),
        "qkv": named(MIXED, "query", "key", "value"),
        "mlp": named(MIXED, "gate", "up"),
        # A kernel is no product that XLA knows, so the policy for products alone would mix a second time.
        "dots": policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named(MIXED)),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["block_input"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    if config.remat == "none":
        return run
    # Inside a scan nothing can be merged with the forward pass anyway, and the barrier against it stops fusions.
    return jax.checkpoint(run, policy=policy[config.remat], prevent_cse=not config.scan_layers)


def saved_bytes_per_token(config: LlamaConfig, *, tensor: int = 1) -> int:
    """Bytes of one layer that wait on the device for the backward pass, for each position of a row.

    Counted from `rematerialised`: every policy keeps the layer's input, whole on every device of the `tensor` axis;
    what is split over heads or feed-forward channels is a `tensor`th. With a kernel that keeps its softmax
    denominators (Splash, blocks); "none" with XLA's fused attention keeps scores of length squared besides.
    """
    width = jnp.dtype(config.compute_dtype).itemsize
    d, h, k, c, f = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim, config.d_ff
    block_input, output, mixed = width * d, width * d, width * h * c + 4 * h
    qkv, gate_up = width * (h + 2 * k) * c, width * 2 * f
    # By autodiff's own choice: both norms in float32 twice, five inputs of products, the rotary factors, the mask of
    # padding, and three more arrays for SwiGLU. The compiler may yet share equal ones.
    norms, inputs, rotary = 2 * (8 * d + 8), 5 * width * d, 2 * width * c
    whole, split = {
        "none": (norms + inputs + rotary, qkv + mixed + (1 + 2 * width) * h * c + 3 * gate_up),
        "full": (block_input, 0),
        "dots": (block_input + output, qkv + mixed + gate_up),
        "attention": (block_input, mixed),
        "qkv": (block_input, mixed + qkv),
        "mlp": (block_input, mixed + gate_up),
        "offload": (0, 0),  # the input waits in the host's memory
    }[config.remat]
    return whole + split // tensor


def attention_kernel(config: LlamaConfig, platform: str, length: int, *, branches: bool = False) -> Kernel:
    """The kernel that this model's attention uses on 'cpu', 'gpu' or 'tpu' for rows of `length` positions."""
    return kernel_for(
        config.attention,
        platform=platform,
        length=length,
        head_dim=config.head_dim,
        dtype=config.compute_dtype,
        branches=branches,
    )


def init(config: LlamaConfig, key: Array) -> Llama:
    """A freshly drawn model; `jax.eval_shape(functools.partial(init, config), key)` gives its shapes alone."""
    return Llama(config, key)


def abstract(config: LlamaConfig) -> Llama:
    """The model with shapes in place of arrays; nothing is allocated, so 65b costs as little as 0.2m."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))
