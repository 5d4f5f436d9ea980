"""Populations: who is finished stays as it was, who diverges is named, who is logged is logged as if alone."""

import dataclasses

import jax
import numpy as np
import pytest

from dynamics import tree
from dynamics.errors import UserError
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log, read_log
from dynamics.train.loop import Hook, train
from dynamics.train.population import (
    Member,
    make_population_step,
    member,
    stack,
    stack_batches,
    train_population,
)
from dynamics.train.step import make_step
from train.tiny import OBJECTIVE, OPTIMIZER, batches, device_batch, fresh, target

STEP = make_population_step(OBJECTIVE, OPTIMIZER)


def one(seed: int, until: int, **more) -> Member:
    return Member(
        state=fresh(seed, total_steps=until),
        batches=lambda start, stop: batches(seed, start, stop),
        until=until,
        **more,
    )


def test_an_inactive_member_keeps_its_state_bit_for_bit():
    states = [fresh(seed) for seed in range(3)]
    digests = [tree.tree_digest(state) for state in states]
    batch = stack_batches([device_batch(seed, 0) for seed in range(3)], [True, False, True])
    state, metrics = STEP(stack(states), batch)
    after = [tree.tree_digest(member(state, index)) for index in range(3)]
    assert [old == new for old, new in zip(digests, after, strict=True)] == [False, True, False]
    assert STEP.values(metrics)["members"][1] is None


def test_members_are_logged_and_hooked_as_if_alone(tmp_path):
    steps: list[tuple[int, int]] = []
    with Log(tmp_path / "0.jsonl") as first, Log(tmp_path / "1.jsonl") as second, Log(tmp_path / "s.jsonl") as single:
        hook = Hook(steps=frozenset({2}), call=lambda step, state: steps.append((step, int(state.step))))
        train_population([one(0, 4, log=first), one(1, 2, log=second, hooks=(hook,)), one(2, 4)], STEP)
        train(fresh(1, total_steps=2), one(1, 2).batches, make_step(OBJECTIVE, OPTIMIZER), until=2, log=single)
    assert steps == [(2, 2)]
    assert [entry["step"] for entry in read_log(first.path).entries] == [1, 2, 3, 4]
    for entry, alone in zip(read_log(second.path).entries, read_log(single.path).entries, strict=True):
        assert entry == pytest.approx(alone, abs=1e-4)


def test_a_member_that_diverges_is_named_and_the_others_go_on():
    def poisoned(start, stop):
        for step, batch in enumerate(batches(1, start, stop), start=start):
            yield batch | {"trained_weights": batch["trained_weights"] * (float("nan") if step == 1 else 1.0)}

    trained = train_population([one(0, 4), dataclasses.replace(one(1, 4), batches=poisoned), one(2, 4)], STEP)
    assert list(trained.failures) == [1]
    assert "the loss of step 2 is nan" in trained.failures[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.states[0].model))


def test_a_population_resumed_is_bit_identical(tmp_path):
    def members() -> list[Member]:
        return [one(0, 5), one(1, 3), one(2, 5)]

    expected = train_population(members(), STEP).states
    with Checkpointer(tmp_path, config="c", keep=9) as checkpointer:
        train_population(members(), STEP, checkpointer=checkpointer, save_every=2)
        restored, _ = checkpointer.restore(4, stack_target(3))
    resumed = [dataclasses.replace(m, state=member(restored, i)) for i, m in enumerate(members())]
    states = train_population(resumed, STEP).states
    assert [tree.tree_digest(state) for state in states] == [tree.tree_digest(state) for state in expected]


def stack_target(count: int):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), target())


def test_shorter_caps_are_padded_with_weight_zero():
    short = device_batch(0, 0)
    short = {k: v[..., :100] if k.startswith("trained_") else v for k, v in short.items()}
    stacked = stack_batches([short, device_batch(1, 0)], [True, True])
    assert stacked["trained_weights"].shape[-1] == 128
    assert stacked["trained_weights"][0, ..., 100:].sum() == 0


def test_members_at_odds_are_refused():
    ahead, _ = make_step(OBJECTIVE, OPTIMIZER)(fresh(0, total_steps=4), device_batch(0, 0))
    with pytest.raises(UserError, match="member 1 is at step 0 of 4 while another is at 1"):
        train_population([dataclasses.replace(one(0, 4), state=ahead), one(1, 4)], STEP)
    narrow = {k: v[:, :4] if k in ("tokens", "positions", "segments") else v for k, v in device_batch(0, 0).items()}
    with pytest.raises(UserError, match="batches of one shape"):
        stack_batches([narrow, device_batch(0, 0)], [True, True])
