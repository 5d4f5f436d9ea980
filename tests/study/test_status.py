"""The state of cells, the order of jobs, the time left, and how progress is shown."""

import fcntl
import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.study.folder import CellFolder, write_json
from dynamics.study.progress import Progress, Running, View, duration, label
from dynamics.study.schedule import Job, Schedule, Work, longest_first, seconds_left
from dynamics.study.status import study_status

from .test_results import scores


def test_a_cell_is_done_running_failed_or_to_do(tmp_path):
    cell = CellFolder(tmp_path / "cell0")
    assert cell.state() == "to do"
    with cell.claim() as mine:
        assert mine
        assert cell.state() == "running"
        with CellFolder(tmp_path / "cell0").claim() as again:
            assert not again
    assert cell.state() == "to do"
    cell.write_failure("no data", "Traceback ...")
    assert cell.state() == "failed"
    record = scores("cell0", 0)
    write_json(cell.scores_file, record)
    assert cell.state() == "done"


def test_asking_whether_a_cell_runs_never_costs_a_worker_its_claim(tmp_path):
    cell = CellFolder(tmp_path / "cell0")
    with cell.claim():
        pass
    (cell.path / "lock").touch()
    with open(cell.path / "lock", "rb") as asking:  # where a poll of `study status` stands for a moment
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not cell.is_claimed()
        timer = threading.Timer(0.05, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with cell.claim() as mine:
            assert mine
        timer.join()


def test_status_counts_cells_and_estimates_the_rest_from_cost(tmp_path):
    coords = scores("", 0)["coords"]
    cells = [{"id": f"cell{i}", "coords": coords, "cost": cost} for i, cost in enumerate((1.0, 2.0, 4.0, 1.0))]
    write_json(tmp_path / "study.json", {"name": "x", "workers": 2, "cells": cells})
    done = scores("cell0", 0)
    done["run"] |= {"train_seconds": 9.0, "eval_seconds": 1.0}
    write_json(tmp_path / "cells" / "cell0" / "scores.json", done)
    CellFolder(tmp_path / "cells" / "cell3").write_failure("broken", "")
    status = study_status(tmp_path)
    assert [cell.state for cell in status.cells] == ["done", "to do", "to do", "failed"]
    assert status.seconds_left == pytest.approx(40.0)  # 20 s and 40 s of work on two lanes
    assert status.to_dict()["failures"] == {"cell3": "broken"}


works = st.builds(
    Work, size=st.sampled_from(["a", "b"]), cost=st.floats(1, 100), fraction=st.floats(0, 1), seconds=st.floats(0, 100)
)


@given(st.lists(works, max_size=8), st.integers(1, 4))
def test_more_lanes_never_take_longer_and_nothing_left_is_zero(work, lanes):
    one, many = seconds_left(work, lanes=lanes), seconds_left(work, lanes=lanes + 1)
    assert (one is None) == (many is None)
    if one is not None and many is not None:
        assert many <= one
    if all(item.fraction == 1 for item in work):
        assert one == (0 if work else None)  # nothing planned yet is nothing known yet


def job(id, *, kind="cell", size="a", params=1, cost=1.0, needs=None):
    return Job(id=id, kind=kind, size=size, params=params, cost=cost, needs=needs)


def test_base_models_come_first_then_large_sizes_then_long_cells():
    jobs = [
        job("short", params=1, cost=1),
        job("long", params=1, cost=9),
        job("large", params=5, cost=2),
        job("base", kind="base", params=1),
    ]
    assert [found.id for found in longest_first(jobs)] == ["base", "large", "long", "short"]


def test_a_cell_waits_for_its_base_model_and_a_busy_one_comes_again():
    schedule = Schedule([job("cell", needs="base"), job("base", kind="base"), job("other")])
    base = schedule.take()
    other = schedule.take()
    assert (base.id, other.id) == ("base", "other")
    schedule.finish(other, "busy")
    schedule.finish(base, "done")
    assert schedule.take().id == "cell"
    assert schedule.take().id == "other"
    assert schedule.take() is None


def test_a_stopped_schedule_hands_out_nothing():
    schedule = Schedule([job("a"), job("b")])
    schedule.finish(schedule.take(), "done")
    schedule.stop()
    assert schedule.take() is None


def view(**fields):
    start = {"name": "x", "total": 4, "done": 1, "failed": 0, "running": (), "seconds": 61.0, "seconds_left": 125.0}
    return View(**{**start, **fields})


def test_elsewhere_than_on_a_terminal_progress_is_plain_lines_when_something_changes():
    stream = io.StringIO()
    with Progress(stream, interval=1000) as progress:
        running = (Running(label="tiny volume 4 seed 1", fraction=0.5, seconds=3.0),)
        progress(view(running=running))
        progress(view(running=running))
        progress(view(done=2, failed=1, messages=("failed: tiny: no data",)))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "x: 1 of 4 cells done; 1 min 01 s, left 2 min 05 s; running tiny volume 4 seed 1 50%",
        "failed: tiny: no data",
        "x: 2 of 4 cells done, 1 failed; 1 min 01 s, left 2 min 05 s",
    ]


def test_durations_and_labels_are_words():
    assert [duration(s) for s in (None, 5, 65, 3700)] == ["not known yet", "5 s", "1 min 05 s", "1 h 01 min"]
    coords = scores("", 3)["coords"] | {"abilities": "math"}
    assert label(coords) == "tiny volume 4 math seed 3"
