"""KTO: every reply judged alone, desirable or not, against how far the policy has drifted from the reference."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamics.errors import UserError
from dynamics.losses.dpo import Scaled
from dynamics.losses.preference import CHOSEN, MISMATCHED, REJECTED, Pairs


def kto_loss(score: Pairs, *, reference_point: Float[Array, ""], beta: float, desirable: bool) -> Pairs:
    """1 - sigmoid(beta * (score - z0)) of a desirable reply, 1 - sigmoid(beta * (z0 - score)) of an undesirable one.

    score: log-ratio of policy and reference, summed over the reply's tokens; z0: the reference point; both in nats.
    Source: Ethayarajh et al. 2024 (KTO), section 4 (the loss there is a reply's weight minus its value); TRL cites its
    equation 7.
    """
    gain = beta * (score - reference_point)
    return jax.nn.sigmoid(-gain if desirable else gain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTO(Scaled):
    """`kto_loss` of every reply that is there: a pair counts as two judgements, a single reply as one.

    The reference point z0 is max(0, mean log-ratio of replies that belong to other prompts), without a gradient, over
    the replies of one micro-batch of all hosts: other micro-batch sizes are (slightly) other losses, in TRL too. Its
    mean is weighted by the pairs' weights. In evaluation it is that of all pairs given at once.

    Equal to TRL's "kto" on the same mismatched replies. TRL takes one for each judgement, the previous of its batch;
    here a pair brings one for its two judgements, from the next pair of the same part of the data.
    """

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise UserError(f"KTO: {field} is {getattr(self, field)}; give a number >= 0")
        if not self.desirable_weight and not self.undesirable_weight:
            raise UserError("KTO: desirable_weight and undesirable_weight are both 0; give at least one a number > 0")

    @property
    def name(self) -> str:
        return "kto"

    @property
    def needs_mismatched(self) -> bool:
        return True

    @property
    def needs_both(self) -> bool:
        return False

    def reference_point(
        self, scores: Float[Array, "*pairs sides"], present: Bool[Array, "*pairs sides"], weights: Pairs
    ) -> Float[Array, ""]:
        """z0 of all these pairs, in nats; 0 where no pair has a mismatched reply."""
        weights = jnp.where(present[..., MISMATCHED], weights, 0.0)
        total = jnp.sum(weights * scores[..., MISMATCHED])
        return jax.lax.stop_gradient(jnp.maximum(total / jnp.where(weights.sum() > 0, weights.sum(), 1.0), 0.0))

    def judged_losses(
        self, scores: Float[Array, "*pairs sides"], present: Bool[Array, "*pairs sides"], weights: Pairs
    ) -> tuple[Pairs, Pairs]:
        point = self.reference_point(scores, present, weights)
        total = jnp.zeros_like(weights)
        for side, weight in ((CHOSEN, self.desirable_weight), (REJECTED, self.undesirable_weight)):
            losses = kto_loss(scores[..., side], reference_point=point, beta=self.beta, desirable=side == CHOSEN)
            total = total + jnp.where(present[..., side], weight * losses, 0.0)
        judgements = present[..., :MISMATCHED].sum(axis=-1).astype(jnp.float32)
        return total / jnp.maximum(judgements, 1.0), judgements

    def drift(
        self, log_ratios: Float[Array, "*pairs sides"], present: Bool[Array, "*pairs sides"], weights: Pairs
    ) -> Pairs:
        """The reference point, which is an estimate of KL(policy || reference) from replies to other prompts."""
        return jnp.broadcast_to(self.reference_point(log_ratios, present, weights), weights.shape)
