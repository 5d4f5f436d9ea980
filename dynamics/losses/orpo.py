"""ORPO: supervised fine-tuning and a penalty on the odds of the rejected reply, in one stage, without a reference."""

import dataclasses

import jax
import jax.numpy as jnp

from dynamics.losses.dpo import Scaled
from dynamics.losses.preference import Pairs

# Nats a token. Nearer to 0, 1 - p is less than float32 log-probabilities can tell, and the odds would be infinite.
SUREST = -1e-6


def log_odds(mean_logprob: Pairs) -> Pairs:
    """log(p / (1 - p)) of p = exp(mean_logprob), the geometric mean of a reply's token probabilities; finite."""
    logp = jnp.minimum(mean_logprob, SUREST)
    # log(1 - p) by expm1 near p = 1 and by log1p near p = 0: each is exact where the other cancels. The branch not
    # taken is given a harmless number, since its infinite gradient times zero would be no number at all.
    near_one = logp > -0.6931472
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near_one, logp, -0.6931472)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near_one, -0.6931472, logp)))
    return logp - jnp.where(near_one, by_expm1, by_log1p)


def odds_ratio_loss(chosen: Pairs, rejected: Pairs) -> Pairs:
    """-log sigmoid of the log odds ratio of two replies, given their mean log-probabilities in nats a token.

    Source: Hong et al. 2024 (ORPO), equation 7.
    """
    return -jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPO(Scaled):
    """SFT of the chosen reply plus beta times `odds_ratio_loss` (equation 6, where beta is called lambda).

    Likelihoods are means over tokens, as in the paper and in TRL. TRL's SFT part differs: it is over prompt and reply,
    and averaged over all tokens of a batch; here over the reply alone, per pair. `sft_weight` is 1 in the paper.
    Rewards are beta times mean log-probabilities, as TRL's.
    """

    sft_weight: float = 1.0

    @property
    def name(self) -> str:
        return "orpo"

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def normalised(self) -> bool:
        return True

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return self.beta * odds_ratio_loss(chosen, rejected)
