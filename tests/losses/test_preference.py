"""Every preference loss is its paper's equation, written here in NumPy, and a reply's sum is that of its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.paired import micro_batch, random_rows

from dynamics.errors import UserError
from dynamics.losses.cpo import CPO
from dynamics.losses.dpo import DPO, IPO, APODown, APOZero, Hinge, RobustDPO
from dynamics.losses.kto import KTO
from dynamics.losses.orpo import ORPO, log_odds
from dynamics.losses.preference import Preference, preference_sums, reply_logprobs
from dynamics.losses.simpo import SimPO
from dynamics.model.llama import LlamaConfig, init

rng = np.random.default_rng(0)
PAIRS = 7
TOKENS = rng.integers(1, 9, (PAIRS, 3))
POLICY = -(TOKENS * rng.uniform(0.1, 3, (PAIRS, 3)))  # sums in nats
REFERENCE = -(TOKENS * rng.uniform(0.1, 3, (PAIRS, 3)))
REFERENCE[:, 2] -= 7  # so that KTO's reference point is not at its bound of 0
WEIGHTS = rng.uniform(0.5, 2, PAIRS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Of each pair, in float64: (w)inner and (l)oser; log-probabilities, log-ratios, and both averaged over tokens.
w, l, _ = POLICY.T
rw, rl, rk = (POLICY - REFERENCE).T
mw, ml, _ = (POLICY / TOKENS).T
nw, nl, _ = ((POLICY - REFERENCE) / TOKENS).T
pw, pl = np.exp(mw), np.exp(ml)
z0 = np.average(rk, weights=WEIGHTS)
assert z0 > 1

# fmt: off
EQUATIONS = [
    (DPO(beta=0.3), np.log1p(np.exp(-0.3 * (rw - rl)))),  # Rafailov et al. 2023, 7
    (DPO(beta=0.3, label_smoothing=0.1),  # Mitchell 2023, 3
     -0.9 * np.log(sigmoid(0.3 * (rw - rl))) - 0.1 * np.log(sigmoid(-0.3 * (rw - rl)))),
    (DPO(beta=5.0, length_normalised=True), np.log1p(np.exp(-5 * (nw - nl)))),  # Lambert et al. 2024, 6
    (DPO(reference_free=True), np.log1p(np.exp(-0.1 * (w - l)))),
    (DPO(sft_weight=0.5), np.log1p(np.exp(-0.1 * (rw - rl))) - 0.5 * mw),  # Pang et al. 2024, 1
    (RobustDPO(flipped_share=0.2),  # Chowdhury et al. 2024
     (-0.8 * np.log(sigmoid(0.1 * (rw - rl))) + 0.2 * np.log(sigmoid(0.1 * (rl - rw)))) / 0.6),
    (IPO(beta=0.2), (nw - nl - 1 / 0.4) ** 2),  # Azar et al. 2023, 17, averages over tokens
    (IPO(beta=0.2, length_normalised=False), (rw - rl - 1 / 0.4) ** 2),
    (Hinge(beta=0.5), np.maximum(0, 1 - 0.5 * (rw - rl))),
    (Hinge(beta=0.5, reference_free=True), np.maximum(0, 1 - 0.5 * (w - l))),
    (APOZero(beta=0.4), 1 - sigmoid(0.4 * rw) + sigmoid(0.4 * rl)),  # D'Oosterlinck et al. 2024, 7 plus 1
    (APODown(beta=0.4), sigmoid(0.4 * rw) + 1 - sigmoid(0.4 * (rw - rl))),  # 8 plus 1
    (SimPO(beta=2.5, gamma=1.2), -np.log(sigmoid(2.5 * (mw - ml) - 1.2))),  # Meng et al. 2024, 6
    (CPO(beta=0.2), -np.log(sigmoid(0.2 * (w - l))) - mw),  # Xu et al. 2024, 3, and the likelihood of a token
    (CPO(beta=0.2, sft_weight=0.0), -np.log(sigmoid(0.2 * (w - l)))),
    (ORPO(beta=0.25),  # Hong et al. 2024, 6 and 7
     -mw - 0.25 * np.log(sigmoid(np.log((pw / (1 - pw)) / (pl / (1 - pl)))))),
    (KTO(beta=0.3, desirable_weight=1.3, undesirable_weight=0.7),  # Ethayarajh et al. 2024; two judgements a pair
     (1.3 * (1 - sigmoid(0.3 * (rw - z0))) + 0.7 * (1 - sigmoid(0.3 * (z0 - rl)))) / 2),
]
# fmt: on


@pytest.mark.parametrize(("objective", "expected"), EQUATIONS, ids=[repr(o) for o, _ in EQUATIONS])
def test_the_loss_of_every_pair_is_the_papers_equation(objective, expected):
    values = objective.of_pairs(POLICY, REFERENCE, TOKENS, WEIGHTS)
    np.testing.assert_allclose(values["loss"], expected, rtol=2e-5, atol=1e-6)
    judgements = 2 if isinstance(objective, KTO) else 1
    np.testing.assert_allclose(values["count"], judgements * WEIGHTS, rtol=1e-6)
    total, weight = preference_sums(values)["loss"]
    np.testing.assert_allclose(total / weight, np.average(expected, weights=WEIGHTS), rtol=2e-5)


def test_every_member_with_an_equation_of_its_own_is_in_the_table():
    covered = {type(objective) for objective, _ in EQUATIONS}
    assert covered == {kind for kind in _members(Preference) if "loss" in vars(kind) or "judged_losses" in vars(kind)}


def _members(kind):
    return {member for child in kind.__subclasses__() for member in {child} | _members(child)}


def test_metrics_are_of_what_the_loss_compares():
    values = DPO(beta=0.3, sft_weight=1.0).of_pairs(POLICY, REFERENCE, TOKENS, WEIGHTS)
    expected = {
        "chosen_reward": 0.3 * rw, "rejected_reward": 0.3 * rl, "margin": 0.3 * (rw - rl), "accuracy": rw > rl,
        "chosen_logprob": w, "rejected_logprob": l, "kl": -(rw + rl) / 2, "sft_loss": -mw,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    normalised = IPO(beta=0.3).of_pairs(POLICY, REFERENCE, TOKENS, WEIGHTS)
    np.testing.assert_allclose(normalised["margin"], 0.3 * (nw - nl), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(normalised["chosen_logprob"], w, rtol=1e-6)
    tied = DPO().of_pairs(POLICY, POLICY, TOKENS, WEIGHTS)
    np.testing.assert_array_equal(tied["accuracy"], np.full(PAIRS, 0.5))
    free = preference_sums(SimPO().of_pairs(POLICY, None, TOKENS, WEIGHTS))
    assert free["kl"] == (0, 0)  # no reference, so no estimate
    point = preference_sums(KTO().of_pairs(POLICY, REFERENCE, TOKENS, WEIGHTS))["kl"]
    np.testing.assert_allclose(point[0] / point[1], z0, rtol=1e-5)


def test_a_pair_is_to_kto_what_its_two_judgements_are():
    mismatched = TOKENS[:, 2]
    once = TOKENS.copy(), WEIGHTS
    chosen = np.stack([TOKENS[:, 0], np.zeros(PAIRS, int), mismatched], axis=1)
    rejected = np.stack([np.zeros(PAIRS, int), TOKENS[:, 1], mismatched], axis=1)
    objective = KTO(desirable_weight=1.5, sft_weight=0.3)
    paired = preference_sums(objective.of_pairs(POLICY, REFERENCE, *once))
    apart = preference_sums(
        objective.of_pairs(
            np.tile(POLICY, (2, 1)), np.tile(REFERENCE, (2, 1)), np.concatenate([chosen, rejected]), np.tile(WEIGHTS, 2)
        )
    )
    for name in ("loss", "chosen_reward", "rejected_reward"):
        np.testing.assert_allclose(paired[name], apart[name], rtol=1e-5)
    assert apart["margin"] == (0, 0)


def test_kto_without_a_mismatched_reply_measures_from_zero():
    tokens = TOKENS * np.array([1, 1, 0])
    expected = (1 - sigmoid(0.1 * rw) + 1 - sigmoid(-0.1 * rl)) / 2
    np.testing.assert_allclose(KTO().of_pairs(POLICY, REFERENCE, tokens, WEIGHTS)["loss"], expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"KTO needs a mismatched reply .* was given 2 sides; .* mismatched=True"):
        KTO().of_pairs(POLICY[:, :2], REFERENCE[:, :2], TOKENS[:, :2], WEIGHTS)


def test_ktos_reference_point_is_never_below_zero():
    values = KTO().of_pairs(POLICY, REFERENCE + np.array([0, 0, 100]), TOKENS, WEIGHTS)
    expected = (1 - sigmoid(0.1 * rw) + 1 - sigmoid(-0.1 * rl)) / 2
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    assert not np.any(values["kl"])


def test_kto_holds_its_reference_point_fixed():
    gradient = jax.grad(lambda policy: KTO().of_pairs(policy, REFERENCE, TOKENS, WEIGHTS)["loss"].sum())
    slope = gradient(jnp.asarray(POLICY))
    assert not np.any(slope[:, 2])
    assert np.all(slope[:, 0] < 0)


def test_log_odds_are_finite_and_exact_at_both_ends():
    logp = np.array([-1e-30, 0.0, -2e-6, -1e-3, -0.6931, -0.6932, -1.0, -30.0, -200.0])
    exact = logp - np.log(-np.expm1(np.minimum(logp, -1e-6)))
    exact[:2] = -1e-6 - np.log(-np.expm1(-1e-6))
    np.testing.assert_allclose(log_odds(jnp.asarray(logp)), exact, rtol=1e-5, atol=1e-5)
    slopes = jax.vmap(jax.grad(log_odds))(jnp.asarray(logp))
    np.testing.assert_allclose(slopes[3:], 1 / -np.expm1(logp[3:]), rtol=1e-4)
    assert np.isfinite(slopes).all()


CONFIG = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24,
    attention="reference",
)  # fmt: skip


def test_the_logprob_of_a_reply_is_the_sum_over_its_own_tokens():
    rows = random_rows(1, rows=2, pairs=2, vocab=32)
    rows[1][1] = (rows[1][1][0], (None, rows[1][1][1][1]))  # a judgement of one reply
    batch = micro_batch(rows, length=32, groups=2, cap=24, pairs=3)
    model = init(CONFIG, jax.random.key(0))
    sums, tokens = jax.jit(lambda m, b: reply_logprobs(m, b, chunk=8))(model, batch)
    assert sums.shape == tokens.shape == (2, 3, 2)

    @jax.jit
    def logits(text):
        steps = jnp.arange(text.size)[None]
        return jax.nn.log_softmax(model(text[None], steps, jnp.ones_like(steps))[0] @ model.head)

    expected, count = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    for place in np.ndindex(2, 2, 2):
        prompt, replies = rows[place[0]][place[1]]
        reply = replies[place[2]]
        if reply is not None:
            text = np.zeros(16, np.int32)
            text[: len(prompt + reply)] = prompt + reply
            predicted = np.asarray(logits(text))[len(prompt) - 1 :]
            expected[place] = sum(predicted[i, token] for i, token in enumerate(reply))
            count[place] = len(reply)
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    np.testing.assert_array_equal(tokens, count)


def test_at_the_reference_dpo_is_log_2_and_pulls_both_replies_with_half_beta():
    rows, model = random_rows(2, rows=2, pairs=2, vocab=32), init(CONFIG, jax.random.key(0))
    batch = micro_batch(rows, length=32, groups=2)

    @jax.jit
    def replies(model):
        return reply_logprobs(model, jax.tree.map(jnp.asarray, batch), chunk=64)[0]

    @jax.jit
    def gradient(model, batch):
        return jax.value_and_grad(DPO(beta=0.2), has_aux=True)(model, batch)

    def difference(model):
        sums = replies(model)
        return jnp.sum(sums[..., 0] - sums[..., 1])

    (loss, metrics), mine = gradient(model, batch | {"reference": replies(model)})
    np.testing.assert_allclose(loss, 4 * np.log(2), rtol=1e-6)
    assert metrics["loss"][1] == 4
    assert metrics["accuracy"][0] == 2
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(jax.grad(difference)(model)), strict=True):
        np.testing.assert_allclose(a, -0.1 * b, atol=1e-6)
