"""Causal attention inside segments: one function, several ways to compute it, one meaning.

Dimensions: b batch, l length, h query heads, k key/value heads, g query heads per key head, c head channels.

Position i may look at position j exactly when j <= i and both lie in the same segment, and segment 0 is padding,
which looks at nothing: its output is zero. Rows of a batch never mix. Softmax is in float32 whatever the inputs are.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Kind = Literal["auto", "reference", "blocks", "fused"]

# Finite, so that a row with nothing to look at gives numbers; exp(HIDDEN - any score) is exactly 0 in float32.
HIDDEN = -1e30


def attention(
    query: Float[Array, "b l h c"],
    key: Float[Array, "b l k c"],
    value: Float[Array, "b l k c"],
    segments: Int[Array, "b l"],
    *,
    kind: Kind,
    block: int,
) -> Float[Array, "b l h c"]:
    """Mix the values of earlier positions of the same segment, weighted by softmax of scaled dot products.

    `kind`: "reference" (all scores at once; the oracle), "blocks" (each block of `block` queries against the keys up
    to its end: half the work; best on CPU), "fused" (jax.nn.dot_product_attention), "auto" (blocks on CPU, else fused).
    """
    if kind == "auto":
        kind = "blocks" if jax.default_backend() == "cpu" else "fused"
    if kind == "fused":
        mixed = jax.nn.dot_product_attention(query, key, value, mask=_allowed(segments, segments)[:, None])
    else:
        mixed = _in_blocks(query, key, value, segments, block=query.shape[1] if kind == "reference" else block)
    return jnp.where(segments[:, :, None, None] > 0, mixed, 0)


def _allowed(query_segments: Int[Array, "b q"], key_segments: Int[Array, "b s"]) -> Array:
    """Whether a query may see a key; the queries are the last positions of the keys' range."""
    num_queries, num_keys = query_segments.shape[1], key_segments.shape[1]
    causal = jnp.arange(num_keys)[None, :] <= jnp.arange(num_keys - num_queries, num_keys)[:, None]
    return causal & (query_segments[:, :, None] == key_segments[:, None, :])


def _in_blocks(query: Array, key: Array, value: Array, segments: Array, *, block: int) -> Array:
    """Queries `start..stop` against keys `0..stop`; the slices are static, so the skipped half is never computed."""
    batch, length, heads, channels = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, channels).transpose(0, 2, 3, 1, 4)  # b k g l c
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)  # b k l c
    mixed = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        scores = jnp.einsum(
            "bkgqc,bksc->bkgqs", query[:, :, :, start:stop], key[:, :, :stop], preferred_element_type=jnp.float32
        )
        allowed = _allowed(segments[:, start:stop], segments[:, :stop])[:, None, None]
        weights = jax.nn.softmax(jnp.where(allowed, scores * channels**-0.5, HIDDEN), axis=-1)
        mixed.append(jnp.einsum("bkgqs,bksc->bkgqc", weights.astype(value.dtype), value[:, :, :stop]))
    return jnp.concatenate(mixed, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, channels)
