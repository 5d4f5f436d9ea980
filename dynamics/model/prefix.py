"""Texts that begin alike: the keys and values of their common prefix are made once, and each text goes on from there.

Dimensions as in `llama.py`, and: s prefixes at a time, p their slots, r rows a prefix. The rows of prefix i are those
from i * r on, so that a mesh which splits rows gives each of its parts prefixes of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynamics.model.attention import HIDDEN, attention
from dynamics.model.llama import Block, Llama, finish_block, picked, project_qkv, rms_norm, rope_angles, unstacked
from dynamics.model.sharding import constrain

Caches = (
    Any  # keys and values [s, p, k, c] of every layer: a list of pairs, or one pair stacked where layers are scanned
)

MOST_BLOCKS = 4  # of queries in a row; an eighth of its scores are masked in vain, a sixteenth with eight blocks

_ROWS = ("batch", "whole_length", "channels")
_KEYS = ("batch", "whole_length", "kv_heads", "head_dim")


def prefix_caches(model: Llama, tokens: Int[Array, "s p"], lengths: Int[Array, " s"]) -> Caches:
    """Keys and values of prefixes that stand at the left of their slots; what lies behind them is padding."""
    config = model.config
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    rope = rope_angles(config, positions)

    def layer(x: Array, block: Block) -> tuple[Array, tuple[Array, Array]]:
        query, key, value = project_qkv(block, x, rope)
        mixed = attention(query, key, value, segments, kind=config.attention, block=config.attention_block)
        x = constrain(finish_block(block, x, mixed), _ROWS)
        return x, (constrain(key, _KEYS), constrain(value, _KEYS))

    x = _embedded(model, tokens)
    if config.scan_layers:
        return jax.lax.scan(layer, x, model.blocks)[1]
    caches = []
    for block in unstacked(model.blocks, config.num_layers):  # what follows the last layer's keys is never computed
        x, cache = layer(x, block)
        caches.append(cache)
    return caches


def hidden_after(
    model: Llama,
    caches: Caches,
    lengths: Int[Array, " s"],
    tokens: Int[Array, "b l"],
    positions: Int[Array, "b l"],
    segments: Int[Array, "b l"],
    index: Int[Array, "s n"],
) -> Float[Array, "s n d"]:
    """Hidden states after the final norm of texts that go on from prefixes, at the positions that `index` lists.

    A row holds several texts, its segments; each sees its prefix and itself. `positions` count from the prefix's
    beginning. `index` as in `Llama.__call__`, the rows of a prefix being one group. Equal to the model on the whole
    texts but for the order of sums.
    """
    config = model.config
    rope = rope_angles(config, positions)
    # Each block is written out in the program, and small models take longer to compile than to compute.
    block_size = max(config.attention_block, tokens.shape[1] // MOST_BLOCKS)

    def layer(x: Array, block: Block, cache: tuple[Array, Array], index: Array | None = None) -> Array:
        query, key, value = project_qkv(block, x, rope)
        query = constrain(query, ("batch", "whole_length", "heads", "head_dim"))
        key, value = constrain(key, _KEYS), constrain(value, _KEYS)
        mixed = branch_attention(query, key, value, segments, *cache, lengths, block=block_size)
        if index is not None:
            return finish_block(block, picked(x, index), picked(mixed, index))
        return constrain(finish_block(block, x, mixed), _ROWS)

    x = _embedded(model, tokens)
    if config.scan_layers:
        x, _ = jax.lax.scan(lambda x, pair: (layer(x, *pair), None), x, (model.blocks, caches))
        return rms_norm(picked(x, index), model.final_norm[...], config.rms_eps)
    *blocks, last = zip(unstacked(model.blocks, config.num_layers), caches, strict=True)
    for block, cache in blocks:
        x = layer(x, block, cache)
    return rms_norm(layer(x, *last, index), model.final_norm[...], config.rms_eps)


def branch_attention(
    query: Float[Array, "b l h c"],
    key: Float[Array, "b l k c"],
    value: Float[Array, "b l k c"],
    segments: Int[Array, "b l"],
    prefix_key: Float[Array, "s p k c"],
    prefix_value: Float[Array, "s p k c"],
    lengths: Int[Array, " s"],
    *,
    block: int,
) -> Float[Array, "b l h c"]:
    """Attention of rows of segments that all go on from their prefix: one softmax over the prefix and the own segment.

    A block of `block` queries at a time against the prefix and the keys of the row up to the block's end. Softmax is
    in float32, as in `attention`; padding, segment 0, gives numbers that nobody sees.
    """
    rows, length, heads, channels = query.shape
    prefixes, slots, kv_heads, _ = prefix_key.shape
    split = (prefixes, rows // prefixes, length, kv_heads)
    # Heads before length, and the prefix's rows beside each other: one product for all queries of a prefix and head.
    query = query.reshape(*split, heads // kv_heads, channels).transpose(0, 3, 1, 4, 2, 5)
    key, value = (x.reshape(*split, channels).transpose(0, 3, 1, 2, 4) for x in (key, value))
    prefix_key, prefix_value = (x.transpose(0, 2, 1, 3) for x in (prefix_key, prefix_value))
    segments = segments.reshape(split[:3])
    in_prefix = (jnp.arange(slots) < lengths[:, None])[:, None, None, None, None]
    places = jnp.arange(length)
    mixed = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        part, keys, values = query[:, :, :, :, start:stop], key[:, :, :, :stop], value[:, :, :, :stop]
        own = jnp.einsum("skrgqc,skrtc->skrgqt", part, keys, preferred_element_type=jnp.float32)
        same = segments[:, :, start:stop, None] == segments[:, :, None, :stop]
        allowed = same & (places[start:stop, None] >= places[:stop])
        own = jnp.where(allowed[:, None, :, None], own * channels**-0.5, HIDDEN)
        before = jnp.einsum("skrgqc,skpc->skrgqp", part, prefix_key, preferred_element_type=jnp.float32)
        before = jnp.where(in_prefix, before * channels**-0.5, HIDDEN)
        top = jnp.maximum(own.max(axis=-1, keepdims=True), before.max(axis=-1, keepdims=True))
        own, before = jnp.exp(own - top), jnp.exp(before - top)
        total = own.sum(axis=-1, keepdims=True) + before.sum(axis=-1, keepdims=True)
        from_own = jnp.einsum(
            "skrgqt,skrtc->skrgqc", own.astype(value.dtype), values, preferred_element_type=jnp.float32
        )
        from_before = jnp.einsum(
            "skrgqp,skpc->skrgqc", before.astype(value.dtype), prefix_value, preferred_element_type=jnp.float32
        )
        mixed.append(((from_own + from_before) / total).astype(value.dtype))
    joined = jnp.concatenate(mixed, axis=4)
    return joined.transpose(0, 2, 4, 1, 3, 5).reshape(rows, length, heads, channels)


def _embedded(model: Llama, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """As in `Llama.__call__`: rows of the table are looked up whole."""
    table = constrain(model.embedding[...], ("vocab", "channels"))
    return constrain(jnp.take(table, tokens, axis=0).astype(model.config.compute_dtype), _ROWS)
