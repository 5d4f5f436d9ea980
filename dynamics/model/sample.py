"""Greedy decoding with a key/value cache, for batches of prompts of different lengths.

Prompts are aligned at their ends: `bucket` slots hold the prompts, and the token of step t lies in slot bucket + t of
every row, so that each step writes one slot of the whole batch. Slots in front of a prompt are padding (segment 0).
Programs are reused: one for each pair of bucket and `max_new_tokens`, whatever the number and lengths of the prompts.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dynamics.errors import UserError
from dynamics.model.attention import HIDDEN, attention
from dynamics.model.llama import Block, Llama, finish_block, project_qkv, rms_norm, rope_angles, unstacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """What followed one prompt."""

    tokens: list[int]  # without the stop token
    stopped: bool  # whether a stop token ended it; otherwise max_new_tokens did
    last_logits: np.ndarray  # [v] float32, the logits that chose the last token (the stop token when stopped)


def greedy(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    bucket: int = 32,
    mesh: Mesh | None = None,
) -> list[Generated]:
    """Continue every prompt with the most likely token, until a stop token or `max_new_tokens`.

    Prompts are decoded `batch_size` at a time, sorted by length, in slots of `bucket` times a power of two; results
    come back in the order given. A model on a `mesh` that spans processes is decoded by all of them together: each
    gives the same prompts and gets all answers. Raises UserError for an empty prompt and for sizes below 1.
    """
    for name, size in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size), ("bucket", bucket)):
        if size < 1:
            raise UserError(f"greedy decoding: {name} is {size}; give a whole number >= 1")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"greedy decoding: prompt {number} is empty; give at least one token")
    stops = np.asarray(list(stop_ids) or [-1], np.int32)
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    pending = []
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        tokens, lengths = _aligned([prompts[number] for number in chosen], batch_size, bucket, pad_id)
        pending.append((chosen, _decode(model, tokens, lengths, stops, max_new_tokens=max_new_tokens, mesh=mesh)))
    results: dict[int, Generated] = {}
    for chosen, arrays in pending:  # only now does the host wait, so batches follow each other without a gap
        emitted, counts, stopped, logits = (np.asarray(array) for array in arrays)
        for row, number in enumerate(chosen):
            results[number] = Generated(
                tokens=emitted[row, : counts[row]].tolist(), stopped=bool(stopped[row]), last_logits=logits[row]
            )
    return [results[number] for number in range(len(prompts))]


def _aligned(
    prompts: Sequence[Sequence[int]], rows: int, bucket: int, pad_id: int
) -> tuple[Int[np.ndarray, "b l"], Int[np.ndarray, " b"]]:
    """Prompts at the right end of `rows` rows; rows without a prompt have length 0."""
    slots = bucket
    while slots < max(len(prompt) for prompt in prompts):
        slots *= 2
    tokens, lengths = np.full((rows, slots), pad_id, np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, slots - len(prompt) :] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


def _through_layers(model: Llama, layer: Callable, x: Array, blocks: Any, caches: Any) -> tuple[Array, Any]:
    """`layer(x, block, cache) -> x, result` through all layers; results in the form that `caches` has."""
    if model.config.scan_layers:
        return jax.lax.scan(lambda x, pair: layer(x, *pair), x, (blocks, caches))
    results = []
    for number, block in enumerate(blocks):
        x, result = layer(x, block, caches[number] if caches is not None else None)
        results.append(result)
    return x, results


def _logits(model: Llama, x: Float[Array, "b d"]) -> Float[Array, "b v"]:
    x = rms_norm(x, model.final_norm[...], model.config.rms_eps)
    return jnp.matmul(x, model.head.astype(x.dtype), preferred_element_type=jnp.float32)


def _prefill(
    model: Llama, blocks: Any, tokens: Int[Array, "b l"], lengths: Int[Array, " b"], room: int
) -> tuple[Float[Array, "b v"], Any]:
    """Logits after each prompt, and per layer the keys and values [b, l + room, k, c]."""
    config = model.config
    positions = jnp.arange(tokens.shape[1]) - (tokens.shape[1] - lengths[:, None])
    segments = (positions >= 0).astype(jnp.int32)
    rope = rope_angles(config, jnp.maximum(positions, 0))

    def layer(x: Array, block: Block, _: None) -> tuple[Array, tuple[Array, Array]]:
        query, key, value = project_qkv(block, x, rope)
        mixed = attention(query, key, value, segments, kind=config.attention, block=config.attention_block)
        padding = ((0, 0), (0, room), (0, 0), (0, 0))
        return finish_block(block, x, mixed), (jnp.pad(key, padding), jnp.pad(value, padding))

    x = jnp.take(model.embedding[...], tokens, axis=0).astype(config.compute_dtype)
    x, caches = _through_layers(model, layer, x, blocks, None)
    return _logits(model, x[:, -1]), caches


def _cached_attention(
    query: Float[Array, "b 1 h c"],
    keys: Float[Array, "b s k c"],
    values: Float[Array, "b s k c"],
    seen: Bool[Array, "b s"],
) -> Float[Array, "b 1 h c"]:
    """The newest position against the slots that hold its segment's tokens; float32 softmax as in `attention`."""
    batch, _, heads, channels = query.shape
    grouped = query.reshape(batch, keys.shape[2], -1, channels)
    scores = jnp.einsum("bkgc,bskc->bkgs", grouped, keys, preferred_element_type=jnp.float32) * channels**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, HIDDEN), axis=-1)
    return jnp.einsum("bkgs,bskc->bkgc", weights.astype(values.dtype), values).reshape(batch, 1, heads, channels)


def _step(
    model: Llama, blocks: Any, caches: Any, tokens: Int[Array, " b"], lengths: Int[Array, " b"], slots: int, step: Array
) -> tuple[Float[Array, "b v"], Any]:
    """Logits after one more token in every row, and the caches with that token in slot `slots + step`."""
    slot = slots + step
    rope = rope_angles(model.config, (lengths + step)[:, None])

    def layer(x: Array, block: Block, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        query, key, value = project_qkv(block, x, rope)
        keys = jax.lax.dynamic_update_slice_in_dim(cache[0], key, slot, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(cache[1], value, slot, axis=1)
        at = jnp.arange(keys.shape[1])[None]
        seen = (at >= slots - lengths[:, None]) & (at <= slot)
        return finish_block(block, x, _cached_attention(query, keys, values, seen)), (keys, values)

    x = jnp.take(model.embedding[...], tokens[:, None], axis=0).astype(model.config.compute_dtype)
    x, caches = _through_layers(model, layer, x, blocks, caches)
    return _logits(model, x[:, 0]), caches


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "mesh"))
def _decode(
    model: Llama,
    tokens: Int[Array, "b l"],
    lengths: Int[Array, " b"],
    stops: Int[Array, " s"],
    *,
    max_new_tokens: int,
    mesh: Mesh | None,
) -> tuple[Array, Array, Array, Array]:
    """(tokens [b, new], how many of them [b], stopped [b], last logits [b, v]); ends when every row has stopped."""
    # Unstacked once, outside the loop: a slice of every weight in every step costs more than the step's products.
    blocks = model.blocks if model.config.scan_layers else unstacked(model.blocks, model.config.num_layers)
    rows, slots = tokens.shape
    logits, caches = _prefill(model, blocks, tokens, lengths, max_new_tokens)

    def record(step: Array, state: dict[str, Any], logits: Array) -> dict[str, Any]:
        running = ~state["done"]
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        stopped = running & jnp.any(token[:, None] == stops, axis=1)
        emitted = jax.lax.dynamic_update_slice_in_dim(state["emitted"], token[:, None], step, axis=1)
        return state | {
            "token": token,
            "emitted": emitted,
            "counts": state["counts"] + (running & ~stopped),
            "stopped": state["stopped"] | stopped,
            "done": state["done"] | stopped,
            "logits": jnp.where(running[:, None], logits, state["logits"]),
        }

    def body(carry: tuple[Array, dict[str, Any]]) -> tuple[Array, dict[str, Any]]:
        step, state = carry
        logits, caches = _step(model, blocks, state["caches"], state["token"], lengths, slots, step)
        return step + 1, record(step + 1, state | {"caches": caches}, logits)

    state = {
        "emitted": jnp.zeros((rows, max_new_tokens), jnp.int32),
        "counts": jnp.zeros(rows, jnp.int32),
        "stopped": jnp.zeros(rows, bool),
        "done": lengths == 0,
        "logits": jnp.zeros_like(logits),
        "caches": caches,
    }
    first = (jnp.int32(0), record(jnp.int32(0), state, logits))
    _, state = jax.lax.while_loop(lambda c: (c[0] + 1 < max_new_tokens) & ~jnp.all(c[1]["done"]), body, first)
    results = state["emitted"], state["counts"], state["stopped"], state["logits"]
    if mesh is not None:  # whole on every host, which may not read the others' devices
        results = jax.lax.with_sharding_constraint(results, NamedSharding(mesh, PartitionSpec()))
    return results
