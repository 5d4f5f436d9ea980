"""Supervised fine-tuning: the negative log-probability of the trained tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from dynamics.losses.objective import MicroBatch, Objective, Sums, token_logprobs, trained_hidden, weighted_loss

CHUNK = 1024  # positions of a group with logits at a time: 131 MB at a vocabulary of 32,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Objective):
    """Cross-entropy over the trained positions only, in nats, weighted per token."""

    chunk: int = CHUNK

    def __call__(self, model: Any, micro_batch: MicroBatch) -> tuple[Float[Array, ""], Sums]:
        weights = micro_batch["trained_weights"]
        hidden = trained_hidden(model, micro_batch)
        loss = weighted_loss(hidden, model.head, micro_batch["trained_targets"], weights, chunk=self.chunk)
        return loss, {"loss": (jax.lax.stop_gradient(loss), weights.sum())}


def score_batch(model: Any, device_batch: Mapping[str, Array], *, chunk: int = CHUNK) -> Float[Array, "micro g n"]:
    """Log-probabilities in nats of the trained targets of a DeviceBatch; entries of weight 0 mean nothing."""

    def score(micro_batch: MicroBatch) -> Array:
        hidden = trained_hidden(model, micro_batch)
        return token_logprobs(hidden, model.head, micro_batch["trained_targets"], chunk=chunk)

    return jax.lax.map(score, dict(device_batch))
