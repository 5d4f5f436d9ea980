"""Causal attention inside segments: one function, several ways to compute it, one meaning.

Dimensions: b batch, l length, h query heads, k key/value heads, g query heads per key head, c head channels.

Position i may look at position j exactly when j <= i and both lie in the same segment, and segment 0 is padding,
which looks at nothing: its output is zero. Rows of a batch never mix. Softmax is in float32 whatever the inputs are.

With branches, a segment is a prompt (branch 0) and the replies that each go on from it (1, 2, ...), one after another:
position i may look at j only when, besides, j is of the prompt or of i's own branch.

    segment  = [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]
    branch   = [0, 0, 0, 1, 1, 2, 2, 0, 1, 2, 2, 0]     the 6th position sees the first three, and itself
    position = [0, 1, 2, 3, 4, 3, 4, 0, 1, 1, 2, 0]
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from dynamics.errors import UserError
from dynamics.model.attention_kernels import splash
from dynamics.model.sharding import HEAD_AXES, ROW_AXES, active_mesh, active_platform

Kernel = Literal["reference", "blocks", "fused", "splash", "cudnn"]
Kind = Literal["auto", "reference", "blocks", "fused", "splash", "cudnn"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Finite, so that a row with nothing to look at gives numbers; exp(HIDDEN - any score) is exactly 0 in float32.
HIDDEN = -1e30

MIXED = "mixed"  # the name under which rematerialisation keeps what attention gives, and its softmax denominators


def attention(
    query: Float[Array, "b l h c"],
    key: Float[Array, "b l k c"],
    value: Float[Array, "b l k c"],
    segments: Int[Array, "b l"],
    *,
    kind: Kind,
    block: int,
    branches: Int[Array, "b l"] | None = None,
) -> Float[Array, "b l h c"]:
    """Mix the values of earlier positions of the same segment, weighted by softmax of scaled dot products.

    With `branches`, of the same branch or of the segment's prompt, which is branch 0.

    `kind`: "reference" (all scores at once; the oracle), "blocks" (each block of `block` queries against the keys up
    to its end: half the work; best on CPU), "fused" (jax.nn.dot_product_attention, in XLA), "splash" (Pallas, TPU; on
    other platforms interpreted, for tests), "cudnn" (flash attention on GPU), "auto" (see `kernel_for`).
    On an active mesh every device computes its own rows and heads; heads are split over tensor and sequence.
    Raises UserError when a kernel asked for by name does not take these arrays, or when heads do not divide.
    """
    platform = active_platform()
    kernel = kernel_for(
        kind,
        platform=platform,
        length=query.shape[1],
        head_dim=query.shape[3],
        dtype=query.dtype.name,
        branches=branches is not None,
    )
    local = functools.partial(_local, kernel=kernel, block=block, interpret=platform != "tpu")
    mesh = active_mesh()
    with jax.named_scope(f"attention_{kernel}"):
        return (local if mesh is None else _over_mesh(local, mesh))(query, key, value, segments, branches)


def kernel_for(kind: Kind, *, platform: str, length: int, head_dim: int, dtype: str, branches: bool = False) -> Kernel:
    """The kernel that computes this attention: the one place where the platform decides.

    "auto" takes blocks on CPU, Splash on TPU (blocks where there are `branches`, which Splash cannot tell apart), cuDNN
    on GPU, and "fused" where those do not take the arrays. A kernel that is asked for by name and does not take them is
    a UserError, never another kernel.
    """
    best: dict[str, Kernel] = {"cpu": "blocks", "tpu": "blocks" if branches else "splash", "gpu": "cudnn"}
    chosen = best.get(platform, "fused") if kind == "auto" else kind
    if chosen == "splash" and branches:
        raise UserError(
            "attention 'splash' tells segments apart but not the branches of a shared prompt; use attention='auto', "
            "which takes another kernel there, or lay every reply out with its own prompt: shared_prompt=False"
        )
    refusal = _refusal(chosen, platform, length, head_dim, dtype)
    if refusal and kind != "auto":
        raise UserError(f"attention {chosen!r} {refusal}; use attention='auto', which takes another kernel there")
    return "fused" if refusal else chosen


def _refusal(kernel: Kernel, platform: str, length: int, head_dim: int, dtype: str) -> str:
    """Why a kernel does not take these arrays; empty when it does."""
    if kernel == "splash" and (length % 128 or head_dim % 64):
        return f"needs a length in 128s and a head_dim in 64s, and was given length {length}, head_dim {head_dim}"
    if kernel == "cudnn" and platform != "gpu":
        return f"runs on gpu, not on {platform}"
    if kernel == "cudnn" and dtype not in ("bfloat16", "float16"):
        return f"computes in bfloat16 or float16, not {dtype}"
    if kernel == "cudnn" and (length % 2 or head_dim % 8 or head_dim > 128):
        return f"needs an even length and a head_dim in 8s up to 128, and was given {length} and {head_dim}"
    return ""


def _local(
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    branches: Array | None,
    *,
    kernel: Kernel,
    block: int,
    interpret: bool,
) -> Float[Array, "b l h c"]:
    """The rows and heads of one device."""
    if kernel == "splash":
        mixed = splash(query, key, value, segments, saved_as=MIXED, interpret=interpret)
    elif kernel == "blocks":
        mixed = _in_blocks(query, key, value, segments, branches, block=block)
    elif kernel == "reference":
        mixed = checkpoint_name(_reference(query, key, value, segments, branches), MIXED)
    else:
        mixed = checkpoint_name(_library(query, key, value, segments, branches, kernel), MIXED)
    return jnp.where(segments[:, :, None, None] > 0, mixed, 0)


def _library(query: Array, key: Array, value: Array, segments: Array, branches: Array | None, kernel: Kernel) -> Array:
    """jax.nn.dot_product_attention with segments and branches as a mask.

    For cuDNN the mask becomes a bias [b, 1, l, l] that all heads share. The row lengths that it also offers would say
    where padding starts but not where documents meet: packed documents would see each other, without a word.
    """
    mask = _allowed(segments, segments, branches, branches)[:, None]
    if kernel == "cudnn":  # is_causal too: it then skips the blocks of the future, which the mask alone only hides
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation="cudnn")
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def _over_mesh(local: functools.partial, mesh: AbstractMesh) -> functools.partial:
    """`local` on every device's rows and heads; positions that were split over `sequence` are whole inside.

    Each device gives away its positions of most heads for all positions of a few. Key/value heads are repeated where
    the devices are more than they. Kernels that are single calls (Splash, cuDNN) could not be split by the compiler.
    Source: Jacobs et al. 2023 (DeepSpeed-Ulysses).
    """
    rows, heads = PartitionSpec(ROW_AXES, None), PartitionSpec(ROW_AXES, None, HEAD_AXES, None)
    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False
    )
    return functools.partial(_with_enough_heads, spread, math.prod(mesh.shape[axis] for axis in HEAD_AXES))


def _with_enough_heads(
    spread: Callable[..., Array],
    parts: int,
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    branches: Array | None,
) -> Array:
    if query.shape[2] % parts:
        raise UserError(
            f"attention has {query.shape[2]} heads, not divisible by mesh axis {' x '.join(HEAD_AXES)} of size "
            f"{parts}; use a mesh with {' x '.join(HEAD_AXES)} of {math.gcd(query.shape[2], parts)}"
        )
    repeats = parts // math.gcd(key.shape[2], parts)
    return spread(query, jnp.repeat(key, repeats, axis=2), jnp.repeat(value, repeats, axis=2), segments, branches)


def _allowed(
    query_segments: Int[Array, "b q"],
    key_segments: Int[Array, "b s"],
    query_branches: Int[Array, "b q"] | None,
    key_branches: Int[Array, "b s"] | None,
) -> Array:
    """Whether a query may see a key; the queries are the last positions of the keys' range."""
    num_queries, num_keys = query_segments.shape[1], key_segments.shape[1]
    causal = jnp.arange(num_keys)[None, :] <= jnp.arange(num_keys - num_queries, num_keys)[:, None]
    allowed = causal & (query_segments[:, :, None] == key_segments[:, None, :])
    if query_branches is None or key_branches is None:
        return allowed
    return allowed & ((key_branches[:, None, :] == 0) | (query_branches[:, :, None] == key_branches[:, None, :]))


def _reference(query: Array, key: Array, value: Array, segments: Array, branches: Array | None) -> Array:
    """The definition, differentiated by JAX: the oracle of the other kinds."""
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    scores = jnp.einsum("bqhc,bshc->bhqs", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(
        jnp.where(_allowed(segments, segments, branches, branches)[:, None], scores, HIDDEN), axis=-1
    )
    return jnp.einsum("bhqs,bshc->bqhc", weights.astype(value.dtype), value)


def _in_blocks(query: Array, key: Array, value: Array, segments: Array, branches: Array | None, *, block: int) -> Array:
    """Attention by query blocks, in the layout the products want: heads before length."""
    batch, length, heads, channels = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, channels).transpose(0, 2, 3, 1, 4)
    mixed: Array = _blocks(block, query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), segments, branches)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, channels)


def _scores(query: Array, key: Array, segments: Array, branches: Array | None, start: int) -> Array:
    """Masked float32 scores of the queries from `start` on, against as many keys as `key` has."""
    scores = jnp.einsum("bkgqc,bksc->bkgqs", query, key, preferred_element_type=jnp.float32)
    stop = key.shape[2]
    own, seen = (None, None) if branches is None else (branches[:, start:stop], branches[:, :stop])
    allowed = _allowed(segments[:, start:stop], segments[:, :stop], own, seen)[:, None, None]
    return jnp.where(allowed, scores * query.shape[-1] ** -0.5, HIDDEN)


def _ranges(length: int, block: int) -> list[tuple[int, int]]:
    """Queries `start..stop` look at keys `0..stop`; the slices are static, so the skipped half is never computed."""
    return [(start, min(start + block, length)) for start in range(0, length, block)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(
    block: int,
    query: Float[Array, "b k g l c"],
    key: Float[Array, "b k l c"],
    value: Float[Array, "b k l c"],
    segments: Int[Array, "b l"],
    branches: Int[Array, "b l"] | None,
) -> Float[Array, "b k g l c"]:
    return _blocks_forward(block, query, key, value, segments, branches)[0]


def _blocks_forward(
    block: int, query: Array, key: Array, value: Array, segments: Array, branches: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    """Keeps the log of each softmax's denominator instead of the weights: length numbers, not length squared."""
    mixed, norms = [], []
    for start, stop in _ranges(query.shape[3], block):
        scores = _scores(query[:, :, :, start:stop], key[:, :, :stop], segments, branches, start)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        part = _mix(weights.astype(value.dtype), value[:, :, :stop])
        mixed.append((part / total).astype(value.dtype))
        norms.append(top + jnp.log(total))
    # Named, so that a policy can keep both and the backward pass need not mix a second time.
    result = checkpoint_name(jnp.concatenate(mixed, axis=3), MIXED)
    norm = checkpoint_name(jnp.concatenate(norms, axis=3), MIXED)
    return result, (query, key, value, segments, branches, result, norm)


def _mix(weights: Array, value: Array) -> Array:
    return jnp.einsum("bkgqs,bksc->bkgqc", weights, value, preferred_element_type=jnp.float32)


def _blocks_backward(block: int, saved: tuple[Any, ...], d_mixed: Array) -> tuple[Array, Array, Array, None, None]:
    """The weights are computed a second time. Source: Dao et al. 2022 (FlashAttention), algorithm 4."""
    query, key, value, segments, branches, mixed, norm = saved
    drift = jnp.sum(d_mixed.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    d_query = []
    d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for start, stop in _ranges(query.shape[3], block):
        rows = (slice(None), slice(None), slice(None), slice(start, stop))
        prefix = (slice(None), slice(None), slice(0, stop))
        weights = jnp.exp(_scores(query[rows], key[prefix], segments, branches, start) - norm[rows])
        d_weights = jnp.einsum("bkgqc,bksc->bkgqs", d_mixed[rows], value[prefix], preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - drift[rows]) * query.shape[-1] ** -0.5).astype(query.dtype)
        d_query.append(_mix(d_scores, key[prefix]))
        d_key = d_key.at[prefix].add(_gather(d_scores, query[rows]))
        d_value = d_value.at[prefix].add(_gather(weights.astype(value.dtype), d_mixed[rows]))
    d_query = jnp.concatenate(d_query, axis=3)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


def _gather(weights: Array, rows: Array) -> Array:
    """Each key's sum over the queries, and over the query heads that share it."""
    return jnp.einsum("bkgqs,bkgqc->bksc", weights, rows, preferred_element_type=jnp.float32)


_blocks.defvjp(_blocks_forward, _blocks_backward)
