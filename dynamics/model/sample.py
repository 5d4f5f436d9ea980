"""Greedy decoding with a key/value cache, for batches of prompts of different lengths.

Dimensions: b batch, p prompt slots, s slots (prompt and answer), k key/value heads, g query heads per key head,
c head channels, d model, v vocabulary.

A batch has one shape: `batch_size` rows, prompts padded on the right to a multiple of BUCKET, room for the answer. So
few programs are compiled, however ragged the prompts are. Decoding stops when every row has stopped.

    slots      0 1 2 3 . . . .   4 5 6      prompt of 4 in a bucket of 8, then the answer
    positions  0 1 2 3           4 5 6      the gap holds nothing and is seen by nobody
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamics.errors import UserError
from dynamics.model.attention import HIDDEN, attention
from dynamics.model.llama import Llama, finish_block, project_qkv, rms_norm, rope_angles, unstacked

BUCKET = 32  # prompt lengths are rounded up to a multiple of this many tokens


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """One answer: its ids (the stop id included), whether it stopped by itself, the logits of its last step."""

    tokens: list[int]
    stopped: bool
    last_logits: Float[np.ndarray, " v"]


class Cache(NamedTuple):
    """Rotated keys and values of every slot seen so far: one array a layer."""

    key: tuple[Float[Array, "b s k c"], ...]
    value: tuple[Float[Array, "b s k c"], ...]


class _Carry(NamedTuple):
    """The state of the decoding loop."""

    step: Array  # tokens chosen so far, in every row that has not stopped
    cache: Cache
    logits: Float[Array, "b v"]  # of the next token; of a stopped row, those its last token was chosen from
    tokens: Int[Array, "b new"]
    count: Int[Array, " b"]
    stopped: Bool[Array, " b"]


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
) -> list[Generated]:
    """The most likely continuation, token by token, of every prompt; equal to taking the argmax without a cache.

    Ties go to the smaller id. Results come in the order of the prompts and do not depend on `batch_size`.

    Raises UserError for an empty prompt and for counts below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}, batch_size={batch_size}; both must be at least 1")
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise UserError(f"prompt {empty[0]} is empty; a prompt needs at least one token to go on from")
    stops = jnp.asarray(sorted(set(stop_ids)), jnp.int32)
    # Prompts of like length share a batch, so that few rows are mostly padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    running = []
    for start in range(0, len(order), batch_size):
        mine = order[start : start + batch_size]
        tokens, lengths = _padded([prompts[index] for index in mine], batch_size=batch_size, pad_id=pad_id)
        running.append((mine, _decode(model, tokens, lengths, stops, max_new_tokens=max_new_tokens)))
    results: list[Generated | None] = [None] * len(prompts)
    for mine, outputs in running:
        written, count, stopped, logits = jax.device_get(outputs)
        for row, index in enumerate(mine):
            results[index] = Generated(
                tokens=written[row, : count[row]].tolist(), stopped=bool(stopped[row]), last_logits=logits[row]
            )
    return [result for result in results if result is not None]


def _padded(
    prompts: Sequence[Sequence[int]], *, batch_size: int, pad_id: int
) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, " b"]]:
    """Prompts on the left of their rows, and their lengths; rows without a prompt have length 0."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((batch_size, -(-longest // BUCKET) * BUCKET), pad_id, np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


@functools.partial(jax.jit, static_argnames="max_new_tokens")
def _decode(
    model: Llama, tokens: Int[Array, "b p"], lengths: Int[Array, " b"], stops: Int[Array, " n"], *, max_new_tokens: int
) -> tuple[Int[Array, "b new"], Int[Array, " b"], Bool[Array, " b"], Float[Array, "b v"]]:
    """(answers, their lengths, whether they stopped, logits of their last step) of one batch."""
    batch = tokens.shape[0]
    cache, hidden = _prefill(model, tokens, lengths, room=max_new_tokens)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    start = _Carry(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        logits=_logits(model, last),
        tokens=jnp.zeros((batch, max_new_tokens), jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        stopped=lengths == 0,
    )

    def goes_on(carry: _Carry) -> Array:
        return (carry.step < max_new_tokens) & ~jnp.all(carry.stopped)

    def body(carry: _Carry) -> _Carry:
        chosen = jnp.argmax(carry.logits, axis=-1).astype(jnp.int32)
        running = ~carry.stopped
        written = jnp.where(running, chosen, carry.tokens[:, carry.step])
        stopped = carry.stopped | jnp.any(chosen[:, None] == stops, axis=-1)
        cache, hidden = _advance(model, carry.cache, chosen, lengths, tokens.shape[1], carry.step)
        # The logits of a row that ends here stay: they are those its last token came from.
        ends = stopped | (carry.step + 1 == max_new_tokens)
        return _Carry(
            step=carry.step + 1,
            cache=cache,
            logits=jnp.where(ends[:, None], carry.logits, _logits(model, hidden)),
            tokens=carry.tokens.at[:, carry.step].set(written),
            count=carry.count + running,
            stopped=stopped,
        )

    end = jax.lax.while_loop(goes_on, body, start)
    return end.tokens, end.count, end.stopped, end.logits


def _logits(model: Llama, hidden: Float[Array, "b d"]) -> Float[Array, "b v"]:
    return jnp.matmul(hidden, model.head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _embed(model: Llama, tokens: Int[Array, "..."]) -> Array:
    return jnp.take(model.embedding[...], tokens, axis=0).astype(model.config.compute_dtype)


def _prefill(
    model: Llama, tokens: Int[Array, "b p"], lengths: Int[Array, " b"], *, room: int
) -> tuple[Cache, Float[Array, "b p d"]]:
    """Run the prompts; the cache has `room` free slots behind them."""
    config = model.config
    slots = jnp.arange(tokens.shape[1])
    segments = (slots < lengths[:, None]).astype(jnp.int32)
    rope = rope_angles(config, jnp.broadcast_to(slots, tokens.shape))
    x = _embed(model, tokens)
    keys, values = [], []
    for block in unstacked(model.blocks, config.num_layers):
        query, key, value = project_qkv(block, x, rope)
        mixed = attention(query, key, value, segments, kind=config.attention, block=config.attention_block)
        x = finish_block(block, x, mixed)
        free = ((0, 0), (0, room), (0, 0), (0, 0))
        keys.append(jnp.pad(key, free))
        values.append(jnp.pad(value, free))
    return Cache(tuple(keys), tuple(values)), rms_norm(x, model.final_norm[...], config.rms_eps)


def _advance(
    model: Llama, cache: Cache, token: Int[Array, " b"], lengths: Int[Array, " b"], prompt_slots: int, step: Array
) -> tuple[Cache, Float[Array, "b d"]]:
    """Read one token a row: it lies in slot `prompt_slots + step` of every row, and at a position of its own."""
    config = model.config
    rope = rope_angles(config, (lengths + step)[:, None])
    slots = jnp.arange(cache.key[0].shape[1])
    seen = (slots < lengths[:, None]) | ((slots >= prompt_slots) & (slots <= prompt_slots + step))
    x = _embed(model, token)[:, None]
    keys, values = [], []
    for layer, block in enumerate(unstacked(model.blocks, config.num_layers)):
        query, key, value = project_qkv(block, x, rope)
        at = (0, prompt_slots + step, 0, 0)
        keys.append(jax.lax.dynamic_update_slice(cache.key[layer], key.astype(cache.key[layer].dtype), at))
        values.append(jax.lax.dynamic_update_slice(cache.value[layer], value.astype(cache.value[layer].dtype), at))
        x = finish_block(block, x, _look(query, keys[-1], values[-1], seen))
    return Cache(tuple(keys), tuple(values)), rms_norm(x[:, 0], model.final_norm[...], config.rms_eps)


def _look(
    query: Float[Array, "b 1 h c"], key: Float[Array, "b s k c"], value: Float[Array, "b s k c"], seen: Bool[Array, "b s"]
) -> Float[Array, "b 1 h c"]:
    """Attention of one query a row over the slots it may see."""
    batch, _, heads, channels = query.shape
    grouped = query.reshape(batch, key.shape[2], heads // key.shape[2], channels)
    scores = jnp.einsum("bkgc,bskc->bkgs", grouped, key, preferred_element_type=jnp.float32) * channels**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, HIDDEN), axis=-1)
    mixed = jnp.einsum("bkgs,bskc->bkgc", weights.astype(value.dtype), value)
    return mixed.reshape(batch, 1, heads, channels)
