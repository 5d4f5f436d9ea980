"""Objectives over pairs of replies: log-probabilities of whole replies in, sums and weights out.

Dimensions: g groups of rows, n trained positions of a group, pairs, sides (chosen, rejected and, for KTO, a mismatched
reply). A side of no tokens is absent: it has no log-probability, no loss and no gradient.

What is compared is the score of a reply, in nats: its log-probability under the policy, minus that under the reference
where the loss has one, divided by its tokens where the loss is normalised. Other code mixes these up silently; here the
properties `needs_reference` and `normalised` say it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from dynamics.config import check_fields
from dynamics.errors import UserError
from dynamics.losses.objective import MicroBatch, Objective, Sums, token_logprobs, trained_hidden
from dynamics.losses.sft import CHUNK

Pairs = Float[Array, "*pairs"]  # one number of each pair

CHOSEN, REJECTED, MISMATCHED = 0, 1, 2  # the sides of a pair

# What each value of a pair is averaged with: `of_pairs` gives both.
AVERAGED_WITH = {
    "loss": "count",
    "margin": "both",
    "accuracy": "both",
    "chosen_reward": "with_chosen",
    "rejected_reward": "with_rejected",
    "chosen_logprob": "with_chosen",
    "rejected_logprob": "with_rejected",
    "kl": "with_kl",
    "sft_loss": "with_chosen",
}


def reply_logprobs(
    model: Any, micro_batch: MicroBatch, *, chunk: int
) -> tuple[Float[Array, "g pairs sides"], Float[Array, "g pairs sides"]]:
    """(sum over its trained tokens of each reply's log-probability in nats, number of those tokens), float32.

    Replies that are not there have 0 and 0.
    """
    logprobs = token_logprobs(
        trained_hidden(model, micro_batch), model.head, micro_batch["trained_targets"], chunk=chunk
    )
    groups, pairs, sides = micro_batch["reference"].shape
    weights = micro_batch["trained_weights"]
    # A masked sum, not a product: on a TPU a float32 product is one of bfloat16s unless it is told otherwise.
    belongs = (micro_batch["trained_reply"][:, :, None] == jnp.arange(pairs * sides)) & (weights[:, :, None] > 0)

    def of_replies(values: Array) -> Array:
        return jnp.where(belongs, values[:, :, None], 0.0).sum(axis=1).reshape(groups, pairs, sides)

    return of_replies(logprobs), of_replies(jnp.ones_like(logprobs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """A loss of pairs. A member gives `loss`, and says by the properties what it needs.

    `sft_weight` adds that many times the chosen reply's mean negative log-probability per token, in nats, to the loss
    of its pair. Source: Pang et al. 2024 (iterative reasoning preference optimization), its loss DPO+NLL: the first
    version divides the likelihood by the tokens of prompt and reply, the later one by those of the reply, as here.
    TRL's "sft" loss and its CPO average over all chosen tokens of a batch, so that long replies weigh more: equal for
    one pair or equal lengths.
    """

    chunk: int = CHUNK  # positions of a group with logits at a time
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.sft_weight < float("inf"):
            raise UserError(
                f"{type(self).__name__}: sft_weight is {self.sft_weight}; give a number >= 0 (0: without the SFT term)"
            )
        if self.chunk < 1:
            raise UserError(f"{type(self).__name__}: chunk is {self.chunk}; give a whole number of positions >= 1")

    @property
    def name(self) -> str:
        """As in papers and tables: 'dpo'."""
        raise NotImplementedError

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities have any influence."""
        return True

    @property
    def needs_mismatched(self) -> bool:
        """Whether a third side is needed: a reply that belongs to another prompt."""
        return False

    @property
    def needs_both(self) -> bool:
        """Whether a pair of one reply teaches nothing; such pairs get weight 0."""
        return True

    @property
    def normalised(self) -> bool:
        """Whether a score is the mean over a reply's tokens, not the sum."""
        return False

    @property
    def reward_scale(self) -> float:
        """A reward is this times a score."""
        raise NotImplementedError

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        """Loss of each pair, given the scores of its two replies."""
        raise NotImplementedError

    def judged_losses(
        self,
        scores: Float[Array, "*pairs sides"],
        present: Bool[Array, "*pairs sides"],
        weights: Pairs,
    ) -> tuple[Pairs, Pairs]:
        """(mean loss of the judgements of each pair, how many they are): a pair is one, or none where it lacks a reply.

        Finite and without gradient where there is none; `weights` serve what a member takes over all pairs.
        """
        both = present[..., CHOSEN] & present[..., REJECTED]
        losses = self.loss(scores[..., CHOSEN], scores[..., REJECTED])
        return jnp.where(both, losses, 0.0), both.astype(jnp.float32)

    def drift(
        self,
        log_ratios: Float[Array, "*pairs sides"],
        present: Bool[Array, "*pairs sides"],
        weights: Pairs,
    ) -> Pairs:
        """An estimate of the divergence of policy and reference from the replies of each pair, in nats a reply.

        Reference minus policy log-probability: its mean is KL(reference || policy) as far as the replies are drawn as
        the reference would. Not an estimate that TRL gives.
        """
        sides = present[..., :MISMATCHED]
        return -jnp.where(sides, log_ratios[..., :MISMATCHED], 0.0).sum(-1) / jnp.maximum(sides.sum(-1), 1)

    def of_pairs(
        self,
        policy: Float[ArrayLike, "*pairs sides"],
        reference: Float[ArrayLike, "*pairs sides"] | None,
        tokens: Shaped[ArrayLike, "*pairs sides"],
        weights: Float[ArrayLike, "*pairs"],
    ) -> dict[str, Pairs]:
        """Values of each pair, and with what weight each is averaged: pure, for training and for evaluation alike.

        `policy` and `reference` are sums in nats over each reply's trained tokens, `tokens` how many these are (0: no
        such reply), `weights` those of the pairs (0: padding). Values that a pair does not have are 0, at weight 0.

        loss                             averaged with `count`: weight times judgements (1; KTO: replies that are there)
        margin, accuracy                 of the rewards, with `both`; a tie counts one half (TRL: nothing)
        chosen_reward, rejected_reward   reward_scale times score, with `with_chosen` and `with_rejected`
        chosen_logprob, rejected_logprob policy, nats a reply: sums also where the loss takes means
        kl                               `drift`; KTO: its reference point; with `with_kl`: 0 without a reference
        sft_loss                         nats a token of the chosen reply, where sft_weight > 0

        Means over any set of pairs are sum(value * weight) / sum(weight): see `preference_sums`. The loss alone carries
        a gradient.
        """
        policy, tokens, weights = (jnp.asarray(x, jnp.float32) for x in (policy, tokens, weights))
        if self.needs_mismatched and policy.shape[-1] <= MISMATCHED:
            raise UserError(
                f"{type(self).__name__} needs a mismatched reply beside every pair's own and was given "
                f"{policy.shape[-1]} sides; lay the pairs out with mismatched=True"
            )
        present = (tokens > 0) & (weights[..., None] > 0)
        policy = jnp.where(present, policy, 0.0)
        log_ratios = policy
        if self.needs_reference:
            if reference is None:
                raise UserError(f"{type(self).__name__} needs the reference's log-probabilities and was given none")
            log_ratios = policy - jnp.where(present, jnp.asarray(reference, jnp.float32), 0.0)
        scores = log_ratios / jnp.maximum(tokens, 1.0) if self.normalised else log_ratios
        losses, judgements = self.judged_losses(scores, present, weights)
        fixed_scores, fixed_policy, fixed_ratios = map(jax.lax.stop_gradient, (scores, policy, log_ratios))
        rewards = self.reward_scale * fixed_scores
        margin = rewards[..., CHOSEN] - rewards[..., REJECTED]
        chosen, rejected = (jnp.where(present[..., side], weights, 0.0) for side in (CHOSEN, REJECTED))
        both = jnp.where(present[..., CHOSEN] & present[..., REJECTED], weights, 0.0)
        some = jnp.where(present[..., :MISMATCHED].any(-1), weights, 0.0)
        values = {
            "margin": jnp.where(both > 0, margin, 0.0),
            "accuracy": jnp.where(both > 0, 0.5 + 0.5 * jnp.sign(margin), 0.0),
            "chosen_reward": rewards[..., CHOSEN],
            "rejected_reward": rewards[..., REJECTED],
            "chosen_logprob": fixed_policy[..., CHOSEN],
            "rejected_logprob": fixed_policy[..., REJECTED],
            "kl": self.drift(fixed_ratios, present, weights) if self.needs_reference else jnp.zeros_like(weights),
            "count": weights * judgements,
            "both": both,
            "with_chosen": chosen,
            "with_rejected": rejected,
            "with_kl": some if self.needs_reference else jnp.zeros_like(weights),
        }
        if self.sft_weight:
            nll = -policy[..., CHOSEN] / jnp.maximum(tokens[..., CHOSEN], 1.0)
            # A judgement's share, so that a pair that KTO reads as two judgements has the term once.
            losses = losses + self.sft_weight * jnp.where(judgements > 0, nll / jnp.maximum(judgements, 1.0), 0.0)
            values["sft_loss"] = jax.lax.stop_gradient(nll)
        return values | {"loss": losses}

    def __call__(self, model: Any, micro_batch: MicroBatch) -> tuple[Float[Array, ""], Sums]:
        policy, tokens = reply_logprobs(model, micro_batch, chunk=self.chunk)
        sums = preference_sums(self.of_pairs(policy, micro_batch["reference"], tokens, micro_batch["pair_weights"]))
        return sums["loss"][0], jax.tree.map(jax.lax.stop_gradient, sums)


def preference_sums(values: Mapping[str, Array]) -> Sums:
    """{metric: (sum of weight times value, sum of weights)} of what `of_pairs` gives, over all its pairs."""
    averaged = {name: values[weight] for name, weight in AVERAGED_WITH.items() if name in values}
    return {name: (jnp.sum(values[name] * weight), jnp.sum(weight)) for name, weight in averaged.items()}


def check_above_zero(settings: Any, *fields: str) -> None:
    """Refuses settings of a loss that are no finite number > 0."""
    for field in fields:
        if not 0 < getattr(settings, field) < float("inf"):
            raise UserError(f"{type(settings).__name__}: {field} is {getattr(settings, field)}; give a number > 0")


def check_flipped_share(settings: Any, field: str) -> None:
    """Refuses a share of swapped labels at which the labels say nothing, or the opposite."""
    if not 0 <= getattr(settings, field) < 0.5:
        raise UserError(
            f"{type(settings).__name__}: {field} is {getattr(settings, field)}; give the share of pairs whose replies "
            "are swapped by mistake, from 0 to below 0.5"
        )
