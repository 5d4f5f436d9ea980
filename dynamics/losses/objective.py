"""Objectives, and log-probabilities of targets that never build an array of batch x length x vocabulary.

Dimensions: g groups of rows (one per row shard), n trained positions of a group, d model, v vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynamics.errors import UserError
from dynamics.model.sharding import active_row_shards, constrain

MicroBatch = Mapping[str, Array]  # one micro-batch of a DeviceBatch: the arrays without their first dimension
Sums = dict[str, tuple[Array, Array]]  # metric -> (sum, weight); the caller divides once, after all micro-batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised, as a sum over the weights of a micro-batch. A member is a new file and an export line."""

    def __call__(self, model: Any, micro_batch: MicroBatch) -> tuple[Float[Array, ""], Sums]:
        """(sum to differentiate, sums and weights to report); the entry "loss" holds the weight to divide by."""
        raise NotImplementedError


def trained_hidden(model: Any, micro_batch: MicroBatch) -> Float[Array, "g n d"]:
    """Hidden states at the trained positions of each group of rows; replies that share a prompt lie in branches."""
    given = tuple(micro_batch[name] for name in ("tokens", "positions", "segments", "trained_index"))
    return model(*given, branches=micro_batch["branches"]) if "branches" in micro_batch else model(*given)


def token_logprobs(
    hidden: Float[Array, "*groups n d"], head: Float[Array, "d v"], targets: Int[Array, "*groups n"], *, chunk: int
) -> Float[Array, "*groups n"]:
    """Log-probability of each target in nats, float32.

    At most `chunk` positions of every group have logits at a time, in the forward pass and in the backward pass,
    which computes them a second time: four products of n x d x v. Where all n positions fit into one chunk, their
    logits wait for the backward pass instead (n * v * 4 bytes a group, what the one chunk holds anyway) and it is
    three. When the weights are known beforehand, `weighted_loss` is cheaper: three in chunks of any size.
    """
    return _logprobs(_checked(chunk), hidden, head, targets)


def weighted_loss(
    hidden: Float[Array, "*groups n d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "*groups n"],
    weights: Float[Array, "*groups n"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Sum of weights times negative log-probability of the targets, in nats, float32.

    The gradients with respect to `hidden` and `head` are made in the forward pass while a chunk's logits exist, so
    each logit is computed once. `targets` and `weights` get no gradient.
    """
    return _weighted(_checked(chunk), hidden, head, targets, weights)


def _checked(chunk: int) -> int:
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; give the positions that have logits at a time, a whole number >= 1")
    return chunk


def _logits(hidden: Array, head: Array) -> Array:
    """float32 logits by one flat product; half-precision logits carry under four significant digits."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.matmul(flat, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits.reshape(*hidden.shape[:-1], -1)


def _gold(logits: Array, targets: Array) -> Array:
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _by_chunks(step: Callable, carry: Any, arrays: tuple[Array, ...], *, chunk: int) -> tuple[Any, Any]:
    """scan `step` over pieces [*groups, <= chunk, ...] of arrays [*groups, n, ...]; results come back joined.

    The pieces are equal, so n is padded by less than one position a piece; padding has weight and target 0.
    """
    axis = arrays[-1].ndim - 1
    n = arrays[-1].shape[axis]
    pieces = -(-n // chunk)
    if pieces == 1:
        return step(carry, arrays)
    size = -(-n // pieces)

    def split(x: Array) -> Array:
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, pieces * size - n)
        x = jnp.pad(x, pad)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :]), axis, 0)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], pieces * size, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, n, axis=axis)

    carry, results = jax.lax.scan(step, carry, jax.tree.map(split, arrays))
    return carry, jax.tree.map(join, results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(chunk: int, hidden: Array, head: Array, targets: Array) -> Array:
    return _logprobs_forward(chunk, hidden, head, targets)[0]


def _logprobs_forward(chunk: int, hidden: Array, head: Array, targets: Array) -> tuple[Array, tuple[Any, ...]]:
    whole = _gathered(head, hidden)
    keep = targets.shape[-1] <= chunk

    def step(carry: None, piece: tuple[Array, Array]) -> tuple[None, tuple[Array, Array, Array | None]]:
        logits = _logits(piece[0], whole)
        norm = jax.nn.logsumexp(logits, axis=-1)
        return carry, (_gold(logits, piece[1]) - norm, norm, logits if keep else None)

    _, (logprobs, norms, logits) = _by_chunks(step, None, (hidden, targets), chunk=chunk)
    return logprobs, (hidden, head, targets, norms, logits)


def _logprobs_backward(chunk: int, saved: tuple[Any, ...], cotangent: Array) -> tuple[Array, Array, None]:
    hidden, head, targets, norms, kept = saved
    whole = _gathered(head, hidden)

    def step(d_head: Array, piece: tuple[Array, ...]) -> tuple[Array, Array]:
        x, norm, target, scale = piece
        logits = _logits(x, whole) if kept is None else kept
        return _head_gradients(d_head, x, whole, jnp.exp(logits - norm[..., None]), target, -scale)

    start = _no_gradient(hidden, head)
    d_head, d_hidden = _by_chunks(step, start, (hidden, norms, targets, cotangent), chunk=chunk)
    return d_hidden, _over_groups(d_head).astype(head.dtype), None


def _gathered(head: Array, hidden: Array) -> Array:
    """The head in the type it is used in, on a mesh with its embed dimension gathered: once, not for every chunk."""
    return constrain(head.astype(hidden.dtype), ("channels", "vocab"))


def _no_gradient(hidden: Array, head: Array) -> Array:
    """A zero gradient of the head, [d, v]; on a mesh [g, d, v], that of each group of rows on the group's own shard.

    Summed into [d, v] at once, every chunk would cost a reduction over the whole mesh.
    """
    groups = math.prod(hidden.shape[:-2])
    if groups == 1 or groups != active_row_shards():
        return jnp.zeros(head.shape, jnp.float32)
    return constrain(jnp.zeros((groups, *head.shape), jnp.float32), ("batch", "channels", "vocab"))


def _over_groups(d_head: Array) -> Array:
    return d_head if d_head.ndim == 2 else d_head.sum(axis=0)


def _head_gradients(
    d_head: Array, hidden: Array, head: Array, probabilities: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
    """(d_head plus this piece's part, d_hidden) of the sum of weights * -logprob, given the softmax of the logits."""
    is_target = targets[..., None] == jnp.arange(head.shape[1])
    d_logits = (weights[..., None] * (probabilities - is_target)).astype(hidden.dtype)
    flat = d_logits.reshape(-1, d_logits.shape[-1])
    d_hidden = (flat @ head.astype(hidden.dtype).T).reshape(hidden.shape)
    if d_head.ndim == 2:
        part = jnp.matmul(hidden.reshape(-1, hidden.shape[-1]).T, flat, preferred_element_type=jnp.float32)
    else:
        grouped = (x.reshape(len(d_head), -1, x.shape[-1]) for x in (hidden, flat))
        part = jnp.einsum("gnd,gnv->gdv", *grouped, preferred_element_type=jnp.float32)
    return d_head + part, d_hidden


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(chunk: int, hidden: Array, head: Array, targets: Array, weights: Array) -> Array:
    return -jnp.sum(weights * _logprobs_forward(chunk, hidden, head, targets)[0])


def _weighted_forward(
    chunk: int, hidden: Array, head: Array, targets: Array, weights: Array
) -> tuple[Array, tuple[Array, Array]]:
    def step(carry: tuple[Array, Array], piece: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        total, d_head = carry
        x, weight, target = piece
        logits = _logits(x, whole)
        exponentials = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        norm = jnp.sum(exponentials, axis=-1, keepdims=True)
        logprobs = _gold(logits, target) - jnp.max(logits, axis=-1) - jnp.log(norm[..., 0])
        d_head, d_hidden = _head_gradients(d_head, x, whole, exponentials / norm, target, weight)
        return (total - jnp.sum(weight * logprobs), d_head), d_hidden

    whole = _gathered(head, hidden)
    start = (jnp.zeros((), jnp.float32), _no_gradient(hidden, head))
    (total, d_head), d_hidden = _by_chunks(step, start, (hidden, weights, targets), chunk=chunk)
    return total, (d_hidden, _over_groups(d_head).astype(head.dtype))


def _weighted_backward(chunk: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, None, None]:
    d_hidden, d_head = saved
    return (cotangent * d_hidden).astype(d_hidden.dtype), (cotangent * d_head).astype(d_head.dtype), None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)
