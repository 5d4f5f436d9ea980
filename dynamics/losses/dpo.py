"""Direct preference optimisation and the losses that differ from it in one function.

Scores are log-ratios in nats: log-probability of a reply under the policy minus that under the reference, summed over
the reply's tokens unless a setting says otherwise. Rewards are beta times scores.
"""

import dataclasses

import jax

from dynamics.losses.preference import Pairs, Preference, check_above_zero, check_flipped_share


def dpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Pairs:
    """-log sigmoid(h) with h = beta * (chosen - rejected); smoothed: (1 - s) * L(h) + s * L(-h), least where
    h = log((1 - s) / s).

    Source: Rafailov et al. 2023 (DPO), equation 7; smoothing: Mitchell 2023 (a note on conservative DPO), equation 3.

    >>> even = jnp.zeros(1)
    >>> float(dpo_loss(even, even, beta=0.1)[0])  # no preference: log 2
    0.6931471824645996
    """
    margin = beta * (chosen - rejected)
    loss = -jax.nn.log_sigmoid(margin)
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * jax.nn.log_sigmoid(-margin)


def robust_dpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float, flipped_share: float) -> Pairs:
    """((1 - s) * L(h) - s * L(-h)) / (1 - 2s): its mean over labels swapped with chance s is L of the true labels.

    Not bounded below for s > 0. Source: Chowdhury et al. 2024 (provably robust DPO), its rDPO loss.
    """
    margin = beta * (chosen - rejected)
    right, swapped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return ((1 - flipped_share) * right - flipped_share * swapped) / (1 - 2 * flipped_share)


def ipo_loss(chosen: Pairs, rejected: Pairs, *, beta: float) -> Pairs:
    """(chosen - rejected - 1 / (2 * beta))^2: the difference is drawn to a finite value, from both sides.

    Source: Azar et al. 2023 (IPO), equation 17, where beta is called tau.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_loss(chosen: Pairs, rejected: Pairs, *, beta: float) -> Pairs:
    """max(0, 1 - beta * (chosen - rejected)).

    Source: Zhao et al. 2023 (SLiC-HF), its rank calibration loss; Liu et al. 2023 (RSO), of log-ratios.
    """
    return jax.nn.relu(1 - beta * (chosen - rejected))


def apo_zero_loss(chosen: Pairs, rejected: Pairs, *, beta: float) -> Pairs:
    """1 - sigmoid(beta * chosen) + sigmoid(beta * rejected): chosen up, rejected down, each against the reference.

    Source: D'Oosterlinck et al. 2024 (anchored preference optimization), equation 7, plus 1 as in TRL: from 0 to 2.
    """
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down_loss(chosen: Pairs, rejected: Pairs, *, beta: float) -> Pairs:
    """sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected)): both down, the rejected more.

    Source: D'Oosterlinck et al. 2024, equation 8, plus 1 as in TRL. Raising the chosen reply may raise it.
    """
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Preference):
    """A loss whose rewards are beta times scores."""

    beta: float = 0.1  # 1 / nats: how dear it is to leave the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "beta")

    @property
    def reward_scale(self) -> float:
        return self.beta


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(Scaled):
    """`dpo_loss` of log-ratios. Sums over tokens, as in the paper and in TRL's "sigmoid".

    `length_normalised`: means over tokens, as in TRL's "sigmoid_norm" (Lambert et al. 2024, Tulu 3), whose beta is
    about 5; TRL's rewards stay sums there, ours are of what the loss compares. `reference_free`: the reference is
    uniform, so scores are log-probabilities of the policy; TRL had this once and has it no more.
    `label_smoothing` is conservative DPO; TRL's "sigmoid" has no smoothing any more and takes the setting in silence
    (its "robust" is another loss: RobustDPO here).
    """

    label_smoothing: float = 0.0  # share of pairs whose replies are swapped by mistake
    length_normalised: bool = False
    reference_free: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flipped_share(self, "label_smoothing")

    @property
    def name(self) -> str:
        return "dpo"

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    @property
    def normalised(self) -> bool:
        return self.length_normalised

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return dpo_loss(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustDPO(Scaled):
    """`robust_dpo_loss`; equals TRL's "robust", whose setting is label_smoothing (0 by default)."""

    flipped_share: float = 0.1  # the paper's epsilon

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flipped_share(self, "flipped_share")

    @property
    def name(self) -> str:
        return "robust_dpo"

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return robust_dpo_loss(chosen, rejected, beta=self.beta, flipped_share=self.flipped_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPO(Scaled):
    """`ipo_loss` of log-ratios averaged over tokens, as in TRL's "ipo" (whose rewards stay sums).

    The paper writes sums; TRL's authors report that its results are those of averages. `length_normalised=False` is
    the equation as printed, under which 1 / (2 * beta) = 5 nats is the aim for a whole reply.
    """

    length_normalised: bool = True

    @property
    def name(self) -> str:
        return "ipo"

    @property
    def normalised(self) -> bool:
        return self.length_normalised

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return ipo_loss(chosen, rejected, beta=self.beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hinge(Scaled):
    """`hinge_loss` of log-ratios: RSO's, and TRL's "hinge". `reference_free`: SLiC-HF's own, of log-probabilities.

    SLiC-HF adds the likelihood of a target reply: `sft_weight`. Its margin delta is 1 / beta here.
    """

    reference_free: bool = False

    @property
    def name(self) -> str:
        return "hinge"

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return hinge_loss(chosen, rejected, beta=self.beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class APOZero(Scaled):
    """`apo_zero_loss`, for replies better than the model's own; equals TRL's "apo_zero"."""

    @property
    def name(self) -> str:
        return "apo_zero"

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return apo_zero_loss(chosen, rejected, beta=self.beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class APODown(Scaled):
    """`apo_down_loss`, for a model better than the chosen replies; equals TRL's "apo_down"."""

    @property
    def name(self) -> str:
        return "apo_down"

    def loss(self, chosen: Pairs, rejected: Pairs) -> Pairs:
        return apo_down_loss(chosen, rejected, beta=self.beta)
