"""What must hold for every preference loss: one table of members, and laws for all; a new member inherits them."""

import copy
import dataclasses

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from train.paired import micro_batch, random_rows

from dynamics.config import check_fields, from_json, to_json
from dynamics.errors import UserError
from dynamics.losses.dpo import DPO, IPO, APODown, RobustDPO
from dynamics.losses.kto import KTO
from dynamics.losses.preference import AVERAGED_WITH, preference_sums
from dynamics.losses.preferences import FAMILY
from dynamics.losses.simpo import SimPO
from dynamics.model.llama import LlamaConfig, init
from dynamics.train.step import gradient_sums

PAIRS = 6
EACH = pytest.mark.parametrize("objective", FAMILY, ids=repr)


def drawn(seed=0):
    """(policy, reference, tokens, weights) of pairs; some have one reply only, one is padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, (PAIRS, 3)).astype(np.float32)
    policy, reference = (-(tokens * rng.uniform(0.05, 3, (PAIRS, 3))).astype(np.float32) for _ in range(2))
    weights = rng.uniform(0.5, 2, PAIRS).astype(np.float32)
    tokens[1, 0] = tokens[2, 1] = weights[3] = tokens[3] = 0
    return policy, reference, tokens, weights


def loss_sum(objective, policy, reference, tokens, weights):
    return preference_sums(objective.of_pairs(policy, reference, tokens, weights))["loss"][0]


slopes = jax.jit(jax.grad(loss_sum, argnums=(1, 2)), static_argnums=0)
sums = jax.jit(lambda objective, *arrays: preference_sums(objective.of_pairs(*arrays)), static_argnums=0)


@EACH
def test_raising_the_chosen_reply_never_raises_the_loss(objective):
    """Nor does lowering the rejected one, up to the aim of a loss that has one, and the other way beyond it."""
    shown = np.zeros(2, np.bool_)
    for seed in range(5):
        policy, reference, tokens, weights = drawn(seed)
        policy *= 1 + seed  # so that some pairs are far apart
        slope = np.array(slopes(objective, policy, reference, tokens, weights)[0])
        chosen, rejected = scores(objective, policy, reference, tokens)
        slope *= np.where(chosen - rejected < aim(objective), 1, -1)[:, None]
        assert (slope[:, 1] >= 0).all()
        if isinstance(objective, APODown):
            # The first part of the loss wants the chosen reply down, and wins where its slope is the larger: where its
            # own score is nearer to 0 than the difference of both.
            slope[:, 0] *= np.where(np.abs(chosen) > np.abs(chosen - rejected), 1, -1)
        assert (slope[:, 0] <= 0).all()
        shown |= [(slope[:, 0] < 0).any(), (slope[:, 1] > 0).any()]
    assert shown.all()


def aim(objective):
    """The difference of scores that a loss draws a pair to, in nats."""
    if isinstance(objective, IPO):
        return 1 / (2 * objective.beta)
    smoothed = objective.label_smoothing if isinstance(objective, DPO) else 0
    return np.log((1 - smoothed) / smoothed) / objective.beta if smoothed else np.inf


def scores(objective, policy, reference, tokens):
    """What the loss compares of (chosen, rejected), of a loss with a reference."""
    ratios = policy - reference
    return (ratios / np.maximum(tokens, 1) if objective.normalised else ratios)[:, :2].T


def test_the_exceptions_are_some():
    """IPO draws the margin to a finite value from both sides; APO-down lowers the chosen reply where it is far up."""
    policy, reference, tokens, weights = drawn()
    far = policy + np.array([8, -8, 0], np.float32) * tokens
    for objective in (IPO(), APODown()):
        assert (slopes(objective, far, reference, tokens, weights)[0][:, 0] > 0).any()


def test_at_the_reference_the_sigmoid_loss_is_log_2_and_its_slopes_half_beta():
    policy, _, tokens, weights = drawn()
    for objective in (DPO(beta=0.3), DPO(beta=0.3, label_smoothing=0.2)):
        total, weight = sums(objective, policy, policy, tokens, weights)["loss"]
        np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-6)
        share = 1 - 2 * objective.label_smoothing
        both = np.where((tokens[:, :2] > 0).all(axis=1), weights, 0)[:, None]
        slope = slopes(objective, policy, policy, tokens, weights)[0]
        np.testing.assert_allclose(slope[:, :2], both * share * 0.15 * np.array([-1, 1]), rtol=1e-5)


@EACH
def test_the_order_of_pairs_is_no_matter(objective):
    arrays, order = drawn(), np.random.default_rng(5).permutation(PAIRS)
    values, moved = (objective.of_pairs(*(x[o] for x in arrays)) for o in (np.arange(PAIRS), order))
    for name, value in values.items():
        np.testing.assert_allclose(value[order], moved[name], rtol=1e-6, err_msg=name)


@EACH
def test_padding_and_absent_replies_change_nothing_and_get_no_gradient(objective):
    arrays = drawn()
    policy, reference, tokens, weights = (x.copy() for x in arrays)
    gone = (tokens == 0) | (weights == 0)[:, None]
    wild = [np.where(gone, value, x) for value, x in ((np.inf, policy), (np.nan, reference))]
    with jax.debug_nans(True):
        slope = slopes(objective, *wild, tokens, weights)[0]
    assert np.isfinite(slope).all()
    assert not np.any(slope[gone])
    there = weights > 0
    without = sums(objective, *(x[there] for x in arrays))
    for name, pair in sums(objective, *wild, tokens, weights).items():
        np.testing.assert_allclose(pair, without[name], rtol=1e-6, err_msg=name)
    if objective.needs_both:
        alone = ~(tokens[:, :2] > 0).all(axis=1)
        values = objective.of_pairs(*wild, tokens, weights)
        assert not np.any(slope[alone])
        assert not np.any(values["loss"][alone])
        assert not np.any(values["count"][alone])


@EACH
def test_extreme_replies_give_finite_losses_and_gradients(objective):
    tokens, weights = np.full((4, 3), 50, np.float32), np.ones(4, np.float32)
    policy = np.array([[-1e-9, -1e4, -1], [-1e4, -1e-9, -1], [0, 0, 0], [-1e4, -1e4, -1e4]], np.float32)
    with jax.debug_nans(True):
        slope = slopes(objective, policy, np.zeros_like(policy), tokens, weights)[0]
    assert np.isfinite(slope).all()
    assert np.isfinite(objective.of_pairs(policy, np.zeros_like(policy), tokens, weights)["loss"]).all()


@settings(max_examples=10)
@given(factor=st.floats(0.1, 10), seed=st.integers(0, 20))
def test_weights_scale_sums_and_leave_means(factor, seed):
    policy, reference, tokens, weights = drawn(seed)
    for objective in FAMILY:
        once = sums(objective, policy, reference, tokens, weights)
        scaled = sums(objective, policy, reference, tokens, np.float32(factor) * weights)
        for name, pair in once.items():
            np.testing.assert_allclose(scaled[name], np.float32(factor) * np.array(pair), rtol=1e-3, atol=1e-5)


@EACH
def test_a_pair_of_weight_two_is_two_pairs(objective):
    arrays = drawn()
    heavy = sums(objective, *arrays[:3], 2 * arrays[3])
    twice = sums(objective, *(np.concatenate([x, x]) for x in arrays))
    for name, pair in heavy.items():
        np.testing.assert_allclose(pair, twice[name], rtol=1e-5, atol=1e-6)


@EACH
def test_only_members_that_say_so_see_the_reference(objective):
    policy, reference, tokens, weights = drawn()
    before, after = (sums(objective, policy, r, tokens, weights) for r in (reference, 2 * reference + 1))
    differ = [name for name in before if not np.array_equal(before[name], after[name])]
    assert ("loss" in differ) is objective.needs_reference
    if not objective.needs_reference:
        assert not differ
        assert not np.any(slopes(objective, policy, reference, tokens, weights)[1])
        assert objective.of_pairs(policy, None, tokens, weights)["with_kl"].sum() == 0
    else:
        with pytest.raises(UserError, match="needs the reference's log-probabilities and was given none"):
            objective.of_pairs(policy, None, tokens, weights)


@EACH
def test_only_members_that_are_normalised_see_how_long_a_reply_is(objective):
    policy, reference, tokens, weights = drawn()
    plain = dataclasses.replace(objective, sft_weight=0.0)
    longer = np.where(tokens > 0, tokens + 3, 0)
    before, after = (sums(plain, policy, reference, t, weights)["loss"][0] for t in (tokens, longer))
    assert (before != after) == objective.normalised


@EACH
def test_settings_survive_a_file_and_are_checked(objective):
    assert from_json(to_json(objective)) == objective
    check_fields(objective)
    assert hash(objective) == hash(dataclasses.replace(objective))
    assert objective.name
    for change, message in (
        ({"sft_weight": -1.0}, "sft_weight is -1.0; give a number >= 0"),
        ({"chunk": 0}, "chunk is 0; give a whole number of positions >= 1"),
        ({"beta": 0.0}, "beta is 0.0; give a number > 0"),
        ({"beta": float("nan")}, "beta is nan; give a number > 0"),
    ):
        with pytest.raises(UserError, match=f"{type(objective).__name__}: {message}"):
            dataclasses.replace(objective, **change)
    for field in ("beta", "sft_weight", "chunk"):
        wrong = copy.copy(objective)
        object.__setattr__(wrong, field, "x")  # past the type checker of the tests, which is not there in use
        with pytest.raises(UserError, match=rf"{type(objective).__name__}\({field}='x'\) is a str; {field} takes "):
            wrong.__post_init__()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(label_smoothing=0.5), "DPO: label_smoothing is 0.5; give the share .* from 0 to below 0.5"),
        (lambda: DPO(label_smoothing=-0.1), "label_smoothing is -0.1"),
        (lambda: RobustDPO(flipped_share=0.5), "RobustDPO: flipped_share is 0.5"),
        (lambda: SimPO(gamma=-1.0), "SimPO: gamma is -1.0; give the margin of rewards to reach, a number >= 0"),
        (lambda: KTO(desirable_weight=-1.0), "KTO: desirable_weight is -1.0; give a number >= 0"),
        (lambda: KTO(desirable_weight=0.0, undesirable_weight=0.0), "both 0; give at least one a number > 0"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(make, message):
    with pytest.raises(UserError, match=message):
        make()


TINY = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24,
    attention="reference", scan_layers=True,
)  # fmt: skip
ROWS = random_rows(3, rows=4, pairs=2, vocab=32, sides=3, longest=4)
ROWS[3] = ROWS[3][:1]  # fewer pairs in one micro-batch than in the other


def one_batch(rows, numbers, groups=1):
    rng = np.random.default_rng(7)
    weights, reference = rng.uniform(0.5, 2, 8)[numbers].tolist(), rng.uniform(-9, -1, (8, 3))[numbers].tolist()
    return micro_batch(rows, length=36, groups=groups, cap=48, pairs=4, weights=weights, reference=reference)


def test_micro_batches_give_the_sums_and_gradients_of_the_whole():
    objective, model = DPO(sft_weight=0.3), init(TINY, jax.random.key(0))
    whole = one_batch(ROWS, np.arange(7), groups=2)
    halves = [one_batch(ROWS[:2], np.arange(4)), one_batch(ROWS[2:], np.arange(4, 7))]
    run = jax.jit(lambda batch: gradient_sums(objective, model, batch))
    together = run({name: array[None] for name, array in whole.items()})
    split = run({name: np.stack([half[name] for half in halves]) for name in whole})
    assert set(together[1]) == set(AVERAGED_WITH)
    for mine, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@EACH
def test_parts_add_up_to_the_whole_but_for_ktos_reference_point(objective):
    arrays = drawn()
    parts = [sums(objective, *(x[part] for x in arrays)) for part in (slice(0, 3), slice(3, 6))]
    whole = sums(objective, *arrays)
    for name in whole:
        same = np.allclose(np.add(*(part[name] for part in parts)), whole[name], rtol=1e-5, atol=1e-5)
        assert same or (isinstance(objective, KTO) and name in ("loss", "kl")), name
