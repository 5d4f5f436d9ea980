"""Preference losses equal those of TRL's trainers on the same weights and tokens: values, metrics and gradients.

TRL pads each reply with its prompt to a row of its own; ours lie beside each other behind one prompt. Where a loss of
ours is another on purpose, the exact relation of the two is tested.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import tree
from dynamics.data.pair_batches import PairBatches, compact_pairs, pair_caps
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.losses.cpo import CPO
from dynamics.losses.dpo import DPO, IPO, APODown, APOZero, Hinge, RobustDPO
from dynamics.losses.kto import KTO
from dynamics.losses.orpo import ORPO
from dynamics.losses.preference import Preference, preference_sums, reply_logprobs
from dynamics.losses.simpo import SimPO
from dynamics.model.convert import load_model, read_config
from dynamics.model.hf_names import weights_of
from parity.toys import weights, write_toy
from parity.trl_losses import (
    BETA,
    BRANCHES,
    CASES,
    CONFIG,
    DESIRABLE,
    GAMMA,
    KEPT,
    LABELS,
    SFT_WEIGHT,
    SMOOTHING,
    UNDESIRABLE,
    pairs,
    trl_results,
)

HERE = Path(__file__).resolve().parent
CHUNK = 16  # fewer positions than there are, so that the chunked head is tested too

# Both sum some ten float32 log-probabilities of 5 nats that themselves differ by a few 1e-6 (see FLOAT32 in ours.py).
# Differences of such sums of 60 nats enter a loss times beta. Seen: 5e-7 of log-probabilities, 8e-7 of losses, and of
# gradients, relative to the largest of an array, 5e-6; ten times that is allowed, for other processors.
LOGPROBS, LOSSES, GRADIENTS = 5e-6, 1e-5, 5e-5

NO_REFERENCE = DPO(beta=BETA, reference_free=True)
SFT_OVER_TOKENS = [(1.0, DPO(beta=BETA, sft_weight=1.0), "tokens"), (-1.0, DPO(beta=BETA), "tokens")]
# TRL's case: our objectives whose weighted sum it is. "even": pairs count alike; "tokens": by chosen tokens, which
# turns our SFT term, a mean over pairs of means over tokens, into TRL's mean over all chosen tokens of the batch.
SAME: dict[str, list[tuple[float, Preference, str]]] = {
    "sigmoid": [(1.0, DPO(beta=BETA), "even")],
    "sigmoid_norm": [(1.0, DPO(beta=BETA, length_normalised=True), "even")],
    "robust": [(1.0, RobustDPO(beta=BETA, flipped_share=SMOOTHING), "even")],
    "ipo": [(1.0, IPO(beta=BETA), "even")],
    "hinge": [(1.0, Hinge(beta=BETA), "even")],
    "apo_zero": [(1.0, APOZero(beta=BETA), "even")],
    "apo_down": [(1.0, APODown(beta=BETA), "even")],
    "sft": SFT_OVER_TOKENS,
    "sigmoid_and_sft": [(1.0, DPO(beta=BETA), "even"), *((SFT_WEIGHT * f, o, w) for f, o, w in SFT_OVER_TOKENS)],
    "cpo_without_nll": [(1.0, CPO(beta=BETA, sft_weight=0.0), "even")],
    "cpo_smoothed": [(1.0, DPO(beta=BETA, reference_free=True, label_smoothing=SMOOTHING), "even")],
    "cpo": [(1.0, CPO(beta=BETA, sft_weight=0.0), "even"), *SFT_OVER_TOKENS],
    "simpo": [(1.0, SimPO(beta=BETA, gamma=GAMMA), "even")],
    "orpo": [(1.0, ORPO(beta=BETA, sft_weight=0.0), "even")],
    "kto": [(1.0, KTO(beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE), "even")],
    "kto_unpaired": [(1.0, KTO(beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE), "one reply")],
    "apo_zero_unpaired": [(0.5, APOZero(beta=BETA), "even")],  # its mean is over replies, ours over pairs
}
# TRL's name of a metric, and ours. Normalised losses have rewards of means here, of sums in TRL (but for CPO and ORPO).
METRICS = {
    "rewards/chosen": "chosen_reward", "rewards/rejected": "rejected_reward", "rewards/margins": "margin",
    "rewards/accuracies": "accuracy", "logps/chosen": "chosen_logprob", "logps/rejected": "rejected_logprob",
    "kl": "kl",
}  # fmt: skip
REWARDS_OF_SUMS = ("sigmoid_norm", "ipo")
MEAN_LOGPS = ("simpo", "orpo")  # TRL shows means over tokens for these, we sums for all

Arrays = dict[str, np.ndarray]


class Ours:
    """The pairs of the toy in one batch with shared prompts, the policy, and its log-probabilities of all replies."""

    def __init__(self, folder: Path) -> None:
        toy = write_toy(folder / "policy", CONFIG)
        # Scanned layers compile in half the time; test_goldens.py holds the others against transformers.
        self.model = load_model(toy, dataclasses.replace(read_config(toy), scan_layers=True))
        micro_batch = jax.tree.map(lambda x: jnp.asarray(x[0]), batch(folder))

        def sums(model: Any) -> tuple[Any, Any]:
            return reply_logprobs(model, micro_batch, chunk=CHUNK)

        @jax.jit
        def pulled_back(model: Any, cotangent: Any) -> Any:
            policy, back, tokens = jax.vjp(sums, model, has_aux=True)
            return policy, tokens, back(cotangent)[0]

        self.micro_batch, self.pulled_back = micro_batch, pulled_back
        self.policy, self.tokens, _ = pulled_back(self.model, np.zeros(micro_batch["reference"].shape, np.float32))

    def values(self, objective: Preference, reference: np.ndarray, weighting: str) -> tuple[dict[str, float], Arrays]:
        """Means of what an objective reports, and the gradient of its mean loss by our names."""
        tokens, weights = self.tokens, np.asarray(self.micro_batch["pair_weights"])
        reference = np.pad(reference, ((0, weights.shape[1] - len(reference)), (0, 0)))[None].astype(np.float32)
        if weighting == "tokens":
            weights = weights * np.asarray(tokens)[..., 0]
        if weighting == "one reply":
            kept = np.array([[label, not label, True] for label in LABELS])
            tokens = tokens * np.pad(kept, ((0, weights.shape[1] - len(kept)), (0, 0)))

        def mean_loss(policy: Any) -> tuple[Any, Any]:
            found = preference_sums(objective.of_pairs(policy, reference, tokens, weights))
            return found["loss"][0] / found["loss"][1], found

        (_, found), cotangent = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(self.policy)
        means = {name: float(total) / float(weight) for name, (total, weight) in found.items() if weight}
        return means, tree.named_leaves(self.pulled_back(self.model, np.asarray(cotangent))[2])


def batch(folder: Path) -> Any:
    """All pairs in two rows of one group, from a store as a run makes it."""
    documents = []
    for number, pair in enumerate(pairs()):
        parts = [pair["prompt"], *(pair[branch] for branch in BRANCHES)]
        branches = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int8)
        tokens = np.concatenate(parts).astype(np.int32)
        documents.append((f"{number}", Encoded(tokens=tokens, trained=branches > 0, branches=branches)))
    store = TokenStore.build(folder / "store", documents, manifest={"parity": "trl"})
    batches = PairBatches.build(store, [[key for key, _ in documents]], rows=2, length=80)
    assert batches.plan.num_batches == 1
    cap, room = pair_caps(batches, groups=1)
    return compact_pairs(batches.batch(0), groups=1, cap=cap, pairs=room)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Ours(tmp_path_factory.mktemp("trl"))


def golden() -> Arrays:
    with np.load(HERE / "trl.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def stored():
    return golden()


def check(ours: Ours, theirs: Arrays, case: str, combined: dict[str, float], gradient: Arrays) -> None:
    """Loss and gradient of a case against ours, put together from `SAME`."""
    assert combined["loss"] == pytest.approx(float(theirs[f"{case}/loss"]), rel=LOSSES, abs=LOSSES)
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in gradient.values()))
    assert norm == pytest.approx(float(theirs[f"{case}/gradient_norm"]), rel=GRADIENTS)
    compared = 0
    for weight in weights_of(ours.model.config):
        for layer in range(CONFIG["num_hidden_layers"] if weight.stacked else 1):
            name = weight.theirs.format(layer)
            if name not in KEPT:
                continue
            found = gradient[weight.ours][layer] if weight.stacked else gradient[weight.ours]
            if weight.num_inputs:  # ours map inputs to outputs, theirs outputs from inputs
                found = found.reshape(-1, int(np.prod(found.shape[weight.num_inputs :]))).T
            expected = theirs[f"{case}/gradient/{name}"]
            assert np.abs(found - expected).max() < GRADIENTS * np.abs(expected).max(), name
            compared += 1
    assert compared == len(KEPT)


def combine(ours: Ours, reference: np.ndarray, parts: list[tuple[float, Preference, str]]) -> tuple[Any, Arrays]:
    """(metrics of the first part with the loss of all, gradient of all)"""
    found = [(factor, *ours.values(objective, reference, weighting)) for factor, objective, weighting in parts]
    loss = sum(factor * means["loss"] for factor, means, _ in found)
    gradient = {name: sum(factor * np.asarray(part[name]) for factor, _, part in found) for name in found[0][2]}
    return found[0][1] | {"loss": loss}, gradient


def check_case(ours: Ours, theirs: Arrays, case: str) -> None:
    combined, gradient = combine(ours, theirs["logps/reference"], SAME[case])
    check(ours, theirs, case, combined, gradient)
    for their_name, name in METRICS.items():
        wanted = theirs.get(f"{case}/{their_name}")
        means_of_tokens = case in MEAN_LOGPS and name.endswith("logprob")
        sums_of_tokens = case in REWARDS_OF_SUMS and name.endswith(("reward", "margin"))
        by_tokens = SAME[case][0][2] == "tokens"  # our metrics are weighted as the loss is
        no_pair = case == "kto_unpaired" and name == "margin"  # ours is of pairs, TRL's of means that share no prompt
        no_kl = case == "apo_zero_unpaired" and name == "kl"  # 0 in TRL, which has no estimate there
        if wanted is None or means_of_tokens or sums_of_tokens or by_tokens or no_pair or no_kl:
            continue
        assert combined[name] == pytest.approx(float(wanted), rel=LOSSES, abs=LOSSES), name


def check_smoothed(ours: Ours, theirs: Arrays) -> None:
    """TRL's "sigmoid" takes label_smoothing in silence. With its robust loss R and its plain one L, the smoothed loss
    (1 - s) L(h) + s L(-h) is 2 (1 - s) L - (1 - 2 s) R: in values and in gradients."""
    keys = [key for key in theirs if key.startswith("sigmoid/")]
    for key in keys:
        np.testing.assert_array_equal(theirs[key.replace("sigmoid", "sigmoid_smoothed", 1)], theirs[key])
    plain, robust = 2 * (1 - SMOOTHING), -(1 - 2 * SMOOTHING)
    parts = [(1.0, DPO(beta=BETA, label_smoothing=SMOOTHING), "even")]
    combined, gradient = combine(ours, theirs["logps/reference"], parts)
    expected = {
        f"smoothed/{key.removeprefix('sigmoid/')}": plain * theirs[key] + robust * theirs[f"robust/{key[8:]}"]
        for key in keys
        if "gradient/" in key or key.endswith("/loss")
    }
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in gradient.values()))
    check(ours, expected | {"smoothed/gradient_norm": norm}, "smoothed", combined, gradient)


def test_log_probabilities_of_replies_behind_one_prompt_are_those_of_transformers(ours, stored):
    expected = stored["logps/policy"]
    np.testing.assert_allclose(np.asarray(ours.policy)[0, : len(expected)], expected, rtol=LOGPROBS)
    lengths = [[len(pair[branch]) for branch in BRANCHES] for pair in pairs()]
    np.testing.assert_array_equal(np.asarray(ours.tokens)[0, : len(expected)], lengths)


@pytest.mark.parametrize("case", SAME)
def test_a_loss_its_metrics_and_its_gradient_are_those_of_trl(case, ours, stored):
    check_case(ours, stored, case)


def test_label_smoothing_that_trl_leaves_out_follows_from_its_other_losses(ours, stored):
    check_smoothed(ours, stored)


def test_dpo_without_a_reference_is_cpo_without_likelihood(ours, stored):
    combined, gradient = combine(ours, stored["logps/reference"], [(1.0, NO_REFERENCE, "even")])
    check(ours, stored, "cpo_without_nll", combined, gradient)


def test_the_gradient_of_the_whole_objective_is_trl_s(ours, stored):
    """As a training step takes it: through the model, the chunked head and the loss at once."""
    objective = DPO(beta=BETA, chunk=CHUNK)
    reference = np.zeros_like(ours.policy)
    reference[0, : len(stored["logps/reference"])] = stored["logps/reference"]
    micro_batch = {**ours.micro_batch, "reference": reference}

    def mean_loss(model: Any) -> Any:
        total, sums = objective(model, micro_batch)
        return total / sums["loss"][1]

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(ours.model)
    check(ours, stored, "sigmoid", {"loss": float(loss)}, tree.named_leaves(gradient))


def test_the_stored_facts_tell_the_losses_apart_and_are_small(stored):
    losses = {case: float(stored[f"{case}/loss"]) for case in CASES if case != "sigmoid_smoothed"}
    distances = [abs(a - b) for x, a in losses.items() for y, b in losses.items() if x < y]
    assert min(distances) > 10 * LOSSES * max(losses.values())
    assert set(SAME) | {"sigmoid_smoothed"} == set(CASES)
    assert (HERE / "trl.npz").stat().st_size < 200_000
    policy = weights(CONFIG)
    assert set(KEPT) <= set(policy)


@pytest.mark.filterwarnings("default")  # TRL's own
def test_trl_running_beside_gives_ours(ours):
    for package in ("torch", "transformers", "trl"):
        pytest.importorskip(package, reason="live parity needs torch, transformers and trl: run `make parity`")
    theirs = trl_results()
    for case in SAME:
        check_case(ours, theirs, case)
    check_smoothed(ours, theirs)
