"""The log: whole lines in, cut back on resume, torn ends counted, no space told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.errors import UserError
from dynamics.train.log import Log, read_log


def test_what_is_written_is_read_back_with_every_digit(tmp_path):
    with Log(tmp_path / "new" / "metrics.jsonl") as log:
        log.write(1, {"loss": 0.1 + 0.2, "weight": 3.0})
    assert read_log(log.path).entries == ({"step": 1, "loss": 0.1 + 0.2, "weight": 3.0},)


@given(cut=st.integers(0, 60), step=st.integers(0, 5))
def test_a_log_cut_anywhere_and_truncated_holds_whole_early_entries(tmp_path_factory, cut, step):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with Log(path) as log:
        for number in range(1, 5):
            log.write(number, {"loss": number / 3})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    left = read_log(path)
    assert left.torn_bytes == len(whole[: len(whole) - cut].rpartition(b"\n")[2])
    with Log(path) as log:
        dropped = log.truncate(step)
        log.write(step + 1, {"loss": 0.5})
    kept = [entry for entry in left.entries if entry["step"] <= step]
    assert dropped == len(left.entries) - len(kept)
    after = read_log(path)
    assert after.torn_bytes == 0
    assert list(after.entries) == [*kept, {"step": step + 1, "loss": 0.5}]


def test_truncating_keeps_the_bytes_of_what_stays(tmp_path):
    with Log(tmp_path / "metrics.jsonl") as log:
        log.write(1, {"loss": 1 / 3, "grad_norm": 1e-12})
        before = log.path.read_bytes()
        log.write(2, {"loss": 2.0})
        assert log.truncate(1) == 1
        assert log.path.read_bytes() == before


def test_a_damaged_line_inside_the_log_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\nnot json\n{"step":3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a log entry"):
        read_log(path)


def test_a_missing_log_is_empty_and_an_unwritable_place_an_error(tmp_path):
    assert read_log(tmp_path / "none.jsonl").entries == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a writable folder"):
        Log(tmp_path / "file" / "metrics.jsonl")


def test_lines_are_plain_json(tmp_path):
    with Log(tmp_path / "metrics.jsonl") as log:
        log.write(7, {"loss": 2.0, "members": [None, {"loss": 1.0}]})
    assert json.loads(log.path.read_text()) == {"step": 7, "loss": 2.0, "members": [None, {"loss": 1.0}]}
