"""SimPO: mean log-probabilities against each other, without a reference, with a margin to reach."""

import dataclasses

import jax

from dynamics.errors import UserError
from dynamics.losses.dpo import Scaled
from dynamics.losses.preference import Pairs


def simpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float, gamma: float) -> Pairs:
    """-log sigmoid(beta * (chosen - rejected) - gamma) of log-probabilities averaged over tokens, in nats a token.

    Source: Meng et al. 2024 (SimPO), equation 6.
    """
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPO(Scaled):
    """`simpo_loss`. gamma is the margin of rewards as in the paper, which advises 0.3 to 0.5 of beta and beta >= 2.

    TRL has it in its CPO trainer: loss_type="simpo" with cpo_alpha=0 (whose default of 1 adds an SFT term), beta 0.1
    and simpo_gamma 0.5 by default. Equal when beta, gamma and that are set.
    """

    beta: float = 2.0  # tokens / nat: scores are means over tokens
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < float("inf"):
            raise UserError(f"SimPO: gamma is {self.gamma}; give the margin of rewards to reach, a number >= 0")

    @property
    def name(self) -> str:
        return "simpo"

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def normalised(self) -> bool:
        return True

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return simpo_loss(chosen, rejected, beta=self.beta, gamma=self.gamma)
