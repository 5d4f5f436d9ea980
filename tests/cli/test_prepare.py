"""`dynamics data prepare`: what a study reads is made before it, by one process or by shares."""

import json
from pathlib import Path

import pytest

from dynamics.cli import main
from dynamics.data.store import TokenStore

TESTS = str(Path(__file__).parent.parent / "study")
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import RUN, STUDY, changed
def {function}():
    return {value}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    def write(function="study", value="STUDY"):
        path = tmp_path / f"{function}.py"
        path.write_text(CONFIG.format(tests=TESTS, function=function, value=value))
        return str(path)

    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path / "cache"))
    return write


def run(capsys, *arguments):
    code = main(["data", "prepare", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_study_is_prepared_once_and_then_told_to_be_there(capsys, config):
    code, out, _ = run(capsys, config())
    assert code == 0
    assert "practice, train: prepared in" in out
    assert "1 shards, 80 documents of at most 256 tokens, longer ones: error" in out
    assert "math" in out
    assert "practice, corpus: prepared in" in out
    assert "practice, test: 20 records (biology 2, " in out
    code, out, _ = run(capsys, config())
    assert code == 0
    assert "practice, train: already prepared" in out


def test_a_config_of_one_run_is_prepared_too_and_json_holds_the_counts(capsys, config):
    code, out, _ = run(capsys, config("run", "RUN"), "--json", "--workers", "1", "--set", "over_long=drop")
    told = json.loads(out)
    assert code == 0
    train = told["stores"][0]
    assert train["settings"]["over_long"] == "drop"
    assert train["abilities"]["math"].keys() == {
        "records", "kept", "truncated", "dropped", "no_trained_token", "tokens", "trained", "rejected",
    }  # fmt: skip
    assert len(TokenStore.open(train["folder"])) == train["documents"]


def test_shares_make_the_store_together_and_the_last_one_completes_it(capsys, config):
    path = config("run", "changed(RUN, base=None)")
    # One part only: the first share makes it and completes the store, whoever comes later finds it.
    first, second = (json.loads(run(capsys, path, "--json", "--shard", f"{number}/2")[1]) for number in (2, 1))
    assert [store["state"] for store in first["stores"]] == ["waits for other shares"]
    assert [store["state"] for store in second["stores"]] == ["prepared"]
    assert run(capsys, path, "--shard", "2/2")[1].count("already prepared") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "3/2"), "--shard 3/2; give I/N, such as 1/4"),
        (("--shard", "0/2"), "--shard 0/2; give I/N"),
        (("--shard", "half"), "--shard half; give I/N"),
        (("--workers", "0"), "--workers 0; give 1 or more"),
    ],
)
def test_wrong_options_are_told(capsys, config, arguments, message):
    code, _, err = run(capsys, config(), *arguments)
    assert code == 2
    assert message in err
