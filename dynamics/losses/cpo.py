"""CPO: log-probabilities against each other, without a reference, beside the likelihood of the chosen reply."""

import dataclasses

import jax

from dynamics.losses.dpo import Scaled
from dynamics.losses.preference import Pairs


def cpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float) -> Pairs:
    """-log sigmoid(beta * (chosen - rejected)) of log-probabilities summed over tokens, in nats.

    Source: Xu et al. 2024 (contrastive preference optimization), equation 3.
    """
    return -jax.nn.log_sigmoid(beta * (chosen - rejected))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CPO(Scaled):
    """`cpo_loss`, plus the SFT term that keeps the policy near the data: `sft_weight` 1, as cpo_alpha in TRL.

    The paper writes that term as the likelihood of the whole reply; TRL, after the authors' code, averages it over all
    chosen tokens of a batch. Here it is the mean over a reply's tokens, then over pairs: equal to TRL's for one pair
    or equal lengths, and the same however a batch is split.
    """

    sft_weight: float = 1.0

    @property
    def name(self) -> str:
        return "cpo"

    @property
    def needs_reference(self) -> bool:
        return False

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return cpo_loss(chosen, rejected, beta=self.beta)
