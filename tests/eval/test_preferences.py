"""Held-out pairs: sums as if every reply were alone after its prompt, and values that are the objective's own."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data.pair_batches import PairBatches
from dynamics.data.replies import Branched, Reply
from dynamics.data.store import TokenStore
from dynamics.eval.preferences import pair_shape, pair_values, preference_points, preferences_by_ability, reply_scores
from dynamics.losses.dpo import DPO
from dynamics.losses.kto import KTO
from dynamics.losses.simpo import SimPO
from dynamics.model.llama import LlamaConfig, init
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for

LENGTH, NUM = 64, 24
TINY = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32
)
MODEL = jax.jit(functools.partial(init, TINY))(jax.random.key(0))


def branched(index: int) -> Branched:
    """Every fourth is a judgement of one reply; a token of some replies is not trained on."""
    draw = np.random.default_rng(index)
    sides = (1, 2) if index % 4 else (1 + index // 4 % 2,)

    def reply(branch: int) -> Reply:
        size = int(draw.integers(2, 14))
        trained = np.ones(size, np.bool_)
        trained[0] = index % 3 > 0
        return Reply(branch=branch, tokens=draw.integers(0, 64, size).astype(np.int32), trained=trained)

    prompt = draw.integers(0, 64, int(draw.integers(1, 20))).astype(np.int32)
    return Branched(prompt=prompt, replies=tuple(map(reply, sides)))


PAIRS = [branched(index) for index in range(NUM)]
KEYS = [f"{'en' if index % 2 else 'zh'}/{index}" for index in range(NUM)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    documents = [(key, pair.document()) for key, pair in zip(KEYS, PAIRS, strict=True)]
    return TokenStore.build(tmp_path_factory.mktemp("pairs") / "store", documents, manifest={})


@jax.jit
def _alone(tokens):
    hidden = MODEL(tokens[None], jnp.arange(LENGTH)[None], jnp.ones((1, LENGTH), jnp.int32))
    logprobs = jax.nn.log_softmax((hidden[0] @ MODEL.head).astype(jnp.float32))
    return jnp.take_along_axis(logprobs[:-1], tokens[1:, None], axis=1)[:, 0]


def alone(prompt, reply) -> float:
    """The plain reading: prompt and reply in a row of their own, every logit made."""
    tokens = np.concatenate([prompt, reply.tokens])
    each = np.asarray(_alone(np.pad(tokens, (0, LENGTH - len(tokens)))), np.float64)
    return float(each[len(prompt) - 1 : len(tokens) - 1][reply.trained].sum())


@pytest.fixture(scope="module")
def expected():
    """(sums, tokens) of every reply, 0 where there is none."""
    sums, tokens = np.zeros((NUM, 2)), np.zeros((NUM, 2), np.int64)
    for index, pair in enumerate(PAIRS):
        for reply in pair.replies:
            sums[index, reply.branch - 1] = alone(pair.prompt, reply)
            tokens[index, reply.branch - 1] = reply.trained.sum()
    return sums, tokens


@pytest.mark.parametrize(
    ("rows", "shared", "mesh"),
    [(2, True, None), (8, False, MeshShape(data=2, fsdp=2))],
    ids=["shared prompts", "prompts apart, four devices"],
)
def test_every_reply_has_the_log_probability_that_it_has_alone(store, expected, rows, shared, mesh):
    batches = PairBatches.build(store, [KEYS], rows=rows, length=LENGTH, shared_prompt=shared)
    placed = None if mesh is None else make_mesh(mesh)
    model = MODEL if placed is None else jax.device_put(MODEL, shardings_for(MODEL, placed))
    done = []
    sums, tokens = reply_scores(model, batches, mesh=placed, on_progress=lambda *told: done.append(told))
    np.testing.assert_allclose(sums, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(tokens, expected[1])
    assert len(batches) == len(done) > 1 or rows == 8
    assert done[-1] == (NUM, NUM)


def test_batches_that_share_a_shape_share_a_program(store):
    some, others = (PairBatches.build(store, [keys], rows=2, length=LENGTH) for keys in (KEYS[:6], KEYS[6:]))
    shape = pair_shape(some, others)
    parts = [reply_scores(MODEL, each, shape=shape)[0] for each in (some, others)]
    whole, _ = reply_scores(MODEL, PairBatches.build(store, [KEYS], rows=2, length=LENGTH))
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)


WEIGHTS = np.linspace(0.5, 2.0, NUM).astype(np.float32)


@pytest.fixture(scope="module")
def sums(expected):
    """Of a reference, and of a policy that likes chosen replies better."""
    reference = expected[0].astype(np.float32)
    return reference, np.where(expected[1] > 0, reference + np.array([1.0, -2.0], np.float32), 0.0)


def test_where_the_policy_is_the_reference_dpo_is_indifferent(expected, sums):
    values = pair_values(DPO(beta=0.3), sums[0], sums[0], expected[1], WEIGHTS)
    for point in preference_points(values, KEYS, step=0, epoch=0.0):
        assert math.isclose(point["loss"], math.log(2), rel_tol=1e-6)
        assert (point["margin"], point["accuracy"], point["kl"]) == (0.0, 0.5, 0.0)


def test_points_are_weighted_means_over_the_pairs_that_have_the_value(expected, sums):
    reference, policy = sums
    values = pair_values(DPO(beta=0.3), policy, reference, expected[1], WEIGHTS)
    points = {point["ability"]: point for point in preference_points(values, KEYS, step=3, epoch=0.5)}
    assert list(points) == ["zh", "en"]
    zh = np.arange(0, NUM, 2)
    both = zh[(expected[1][zh] > 0).all(axis=1)]
    chosen = zh[expected[1][zh, 0] > 0]
    point = points["zh"]
    assert (point["step"], point["epoch"], point["n"]) == (3, 0.5, len(zh))
    assert math.isclose(point["margin"], 0.3 * 3.0, rel_tol=1e-5)
    assert point["accuracy"] == 1.0
    assert math.isclose(point["loss"], math.log1p(math.exp(-0.9)), rel_tol=1e-5)
    assert math.isclose(point["chosen_logprob"], np.average(policy[chosen, 0], weights=WEIGHTS[chosen]), rel_tol=1e-5)
    assert len(both) < len(chosen) < len(zh)


def test_without_a_reference_the_divergence_from_the_start_is_told_too(expected, sums):
    reference, policy = sums
    values = pair_values(SimPO(beta=2.0, gamma=1.0), policy, reference, expected[1], WEIGHTS)
    with_one = pair_values(DPO(beta=0.3), policy, reference, expected[1], WEIGHTS)
    np.testing.assert_allclose(values["kl"], with_one["kl"], rtol=1e-6)
    assert (values["with_kl"] > 0).all()


def test_what_a_pair_does_not_have_is_told_as_none(expected, sums):
    reference, policy = sums
    before, after = (pair_values(DPO(beta=0.3), each, reference, expected[1], WEIGHTS) for each in sums)
    told = preferences_by_ability(before, after, KEYS, expected[1], WEIGHTS)
    assert json.loads(json.dumps(told)) == told
    place = told["zh"]["ids"].index("0")  # a judgement: a chosen reply alone
    assert told["zh"]["after"]["margin"][place] is None
    assert told["zh"]["after"]["loss"][place] is None
    assert told["zh"]["after"]["rejected_logprob"][place] is None
    assert told["zh"]["after"]["chosen_logprob"][place] == policy[0, 0]
    assert told["zh"]["tokens"][place][1] == 0


def test_judgements_of_one_reply_have_a_loss_under_kto(expected, sums):
    sides = [np.concatenate([each, each[:, :1]], axis=1) for each in (*sums, expected[1])]
    values = pair_values(KTO(beta=0.3), sides[1], sides[0], sides[2], WEIGHTS)
    told = preferences_by_ability(values, values, KEYS, sides[2], WEIGHTS)
    losses, counts = (told["zh"]["after"][name] for name in ("loss", "count"))
    assert None not in losses
    single = [count / weight for count, weight in zip(counts, told["zh"]["weight"], strict=True)]
    assert {round(value) for value in single} == {1, 2}
