"""The loop: what it writes and when, that it never waits for a loss each step, and how it is stopped."""

import itertools
import os
import signal
import time

import jax
import pytest

from dynamics import tree
from dynamics.errors import UserError
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log, read_log
from dynamics.train.loop import Hook, Interrupted, train
from dynamics.train.step import make_step
from train.tiny import OBJECTIVE, OPTIMIZER, batches, device_batch, empty_batch, fresh, open_batches, target

STEP = make_step(OBJECTIVE, OPTIMIZER)


def test_every_step_is_logged_once_in_order(tmp_path):
    seen = []
    with Log(tmp_path / "metrics.jsonl") as log:
        trained = train(
            fresh(), open_batches, STEP, until=9, log=log, on_metrics=lambda step, values: seen.append(step)
        )
    entries = read_log(log.path).entries
    assert [entry["step"] for entry in entries] == seen == list(range(1, 10))
    assert {"loss", "weight", "grad_norm", "learning_rate"} <= entries[0].keys()
    assert trained.steps == int(trained.state.step) == 9
    assert trained.last == {key: value for key, value in entries[-1].items() if key != "step"}


class Recording:
    """The real step, noting when it is called and when its metrics are asked for."""

    def __init__(self) -> None:
        self.optimizer = OPTIMIZER
        self.events: list[str] = []

    def __call__(self, state, batch):
        self.events.append("step")
        return STEP(state, batch)

    def values(self, metrics):
        self.events.append("fetch")
        return STEP.values(metrics)


@pytest.mark.parametrize("lag", [0, 3])
def test_metrics_are_fetched_lag_steps_late(lag):
    recording = Recording()
    train(fresh(), open_batches, recording, until=8, lag=lag)
    in_flight = list(itertools.accumulate(1 if event == "step" else -1 for event in recording.events))
    assert max(in_flight) == lag + 1
    assert recording.events[: lag + 1] == ["step"] * (lag + 1)
    assert in_flight[-1] == 0


def test_waiting_for_input_is_measured():
    def slow(start, stop):
        for batch in batches(0, start, stop):
            time.sleep(0.02)
            yield batch

    trained = train(fresh(), slow, STEP, until=8)
    assert 7 * 0.02 <= trained.wait_seconds < trained.seconds
    assert 0.3 < trained.wait_share <= 1.0


def test_saves_come_every_few_steps_at_permanent_ones_and_at_the_end(tmp_path):
    with Checkpointer(tmp_path, config="c", keep=9) as checkpointer:
        train(
            fresh(), open_batches, STEP, until=7, checkpointer=checkpointer, save_every=3, permanent=frozenset({4}),
            meta={"seed": 1},
        )  # fmt: skip
        assert checkpointer.steps() == [3, 4, 6, 7]
        restored = checkpointer.restore_latest(target())
        assert restored.meta == {"seed": 1}
        again = train(restored.state, open_batches, STEP, until=7, checkpointer=checkpointer)
        assert (again.steps, again.last) == (0, {})


def test_hooks_see_the_state_of_their_step():
    digests = {}
    hook = Hook(steps=frozenset({2, 5}), call=lambda step, state: digests.update({step: tree.tree_digest(state)}))
    train(fresh(), open_batches, STEP, until=6, hooks=[hook])
    assert digests == {stop: tree.tree_digest(train(fresh(), open_batches, STEP, until=stop).state) for stop in (2, 5)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_saves_the_current_step_and_the_run_goes_on_from_there(tmp_path, number, code):
    expected = train(fresh(), open_batches, STEP, until=8).state

    def interrupting(start, stop):
        for step, batch in enumerate(batches(0, start, stop), start=start):
            if step == 4:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with Checkpointer(tmp_path / "steps", config="c") as checkpointer, Log(tmp_path / "metrics.jsonl") as log:
        with pytest.raises(Interrupted, match="after step 5, saved; run the same command again") as caught:
            train(fresh(), interrupting, STEP, until=8, checkpointer=checkpointer, log=log)
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is before
        restored = checkpointer.restore_latest(target())
        assert restored.step == 5
        resumed = train(restored.state, open_batches, STEP, until=8, checkpointer=checkpointer, log=log)
    assert tree.tree_digest(resumed.state) == tree.tree_digest(expected)
    assert [entry["step"] for entry in read_log(log.path).entries] == list(range(1, 9))


def test_an_interrupt_is_not_swallowed_as_a_failed_run():
    assert not issubclass(Interrupted, Exception)


def test_empty_batches_are_counted():
    def some_empty(start, stop):
        for step in range(start, stop):
            yield empty_batch(0, step) if step % 3 == 0 else device_batch(0, step)

    assert train(fresh(), some_empty, STEP, until=6).empty_batches == 2


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path):
    def poisoned(start, stop):
        for step, batch in enumerate(batches(0, start, stop), start=start):
            factor = float("nan") if step == 3 else 1.0
            yield batch | {"trained_weights": batch["trained_weights"] * factor}

    with Checkpointer(tmp_path, config="c") as checkpointer:
        with pytest.raises(UserError, match=r"loss of step 4 is nan .* lower peak_lr \(0.003\)"):
            train(fresh(), poisoned, STEP, until=8, checkpointer=checkpointer, save_every=2)
        checkpointer.wait()
        assert checkpointer.steps() == [2]


def test_a_disk_error_in_the_background_ends_the_run(tmp_path):
    (tmp_path / "steps").write_text("a file where the folder should be")
    with pytest.raises((UserError, FileExistsError, NotADirectoryError)):
        train(
            fresh(), open_batches, STEP, until=6, checkpointer=Checkpointer(tmp_path / "steps", config="c"),
            save_every=1,
        )  # fmt: skip


def test_the_source_of_batches_is_closed():
    closed = []

    def source(start, stop):
        try:
            yield from batches(0, start, stop + 5)
        finally:
            closed.append(True)

    train(fresh(), source, STEP, until=2)
    assert closed == [True]
    assert jax.devices()
