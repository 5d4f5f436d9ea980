"""`dynamics data show FILE` of preference pairs, and of a published set of them."""

import json
from pathlib import Path

import pytest

from dynamics.cli import main
from dynamics.data.sources import write_jsonl

ROWS = [
    {"prompt": "Why is it so?", "chosen": "good one", "rejected": "bad"},
    {"prompt": "Why?", "chosen": "so", "rejected": "no such", "weight": 2.0, "system": "Be brief."},
    {"prompt": "Why?", "completion": "never", "label": False},
    {"prompt": "Why?", "chosen": "so", "rejected": "so"},
    {"prompt": "Why is it so?", "chosen": "good one", "rejected": "bad"},
]


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(["data", "show", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    return tmp_path / "pairs.jsonl"


def test_a_file_of_pairs_is_counted(capsys, file: Path):
    code, out, _ = run(capsys, str(file))
    assert code == 0
    for text in (
        "pairs.jsonl: 2 pairs, 1 replies judged alone, 2 rejected",
        "judged alone: 0 desirable, 1 undesirable",
        "different prompts 3; with a system turn 1",
        "turns of a prompt: 1: 2, 2: 1",
        "weights 1.0: 2, 2.0: 1",
        "chosen   characters: min 2, median 5, mean 5, max 8",
        "the longer reply is chosen in 1 pairs and rejected in 1",
        "rejected 1: rejected is the chosen reply again",
        "pairs.jsonl:5: has the content of line 1 again",
        "chosen: good one",
    ):
        assert text in out, text


def test_a_file_of_pairs_for_machines(capsys, file: Path):
    _, out, _ = run(capsys, str(file), "--json", "--rows", "3")
    part = json.loads(out)["parts"][""]
    assert part["pairs"]["undesirable"] == 1
    assert part["pairs"]["characters"]["rejected"] == {"min": 3, "median": 5, "mean": 5, "max": 7}
    assert [sample.get("label") for sample in part["samples"]] == [None, None, False]


def test_judged_replies_are_shown_as_such(capsys, file: Path):
    _, out, _ = run(capsys, str(file), "--rows", "3")
    assert "undesirable: never" in out


def test_a_folder_is_shown_by_part_and_split(capsys, tmp_path: Path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / "en" / f"{split}.jsonl", ROWS[:1])
    _, out, _ = run(capsys, str(tmp_path))
    assert f"{tmp_path} en train: 1 pairs, 0 rejected" in out
    assert f"{tmp_path} en test: 1 pairs" in out
    assert "en: 1 prompts stand in two splits; leave them in one" in out


def test_a_file_without_a_sound_row_is_no_file_of_pairs(capsys, tmp_path: Path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Why?", "chosen": "so", "rejected": None}, ROWS[3]])
    code, out, err = run(capsys, str(tmp_path / "pairs.jsonl"))
    assert code == 2
    assert out.splitlines()[0].endswith("pairs.jsonl: 0 pairs, 2 rejected")
    assert "weights" not in out
    assert "pairs.jsonl:1: rejected is null; it is a text or a list of messages" in out
    assert "pairs.jsonl gave a pair" in err
    assert run(capsys, str(tmp_path / "pairs.jsonl"), "--json")[0] == 2


def test_a_bad_row_is_an_error_where_errors_are_wanted(capsys, file: Path):
    code, _, err = run(capsys, str(file), "--on-bad-record", "error")
    assert code == 2
    assert "pairs.jsonl:4: rejected is the chosen reply again" in err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("records.jsonl", (), "holds no preference pairs: its first row has 'instruction', 'output'"),
        ("", (), "holds no preference pairs: its first row has 'instruction', 'output'"),
        ("none.jsonl", (), "none.jsonl; give a config, preference pairs or a name of dynamics data list"),
        ("records.jsonl", ("--data-dir", "x"), "--data-dir has no use here"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused(capsys, tmp_path: Path, name: str, options: tuple, message: str):
    for path in ("records.jsonl", "math_train.jsonl"):
        write_jsonl(tmp_path / path, [{"instruction": "a", "output": "b"}])
    code, _, err = run(capsys, str(tmp_path / name), *options)
    assert code == 2
    assert message in err


def test_a_published_set_shows_the_same_counts(capsys, tmp_path: Path):
    write_jsonl(tmp_path / "ultrafeedback" / "train_prefs.jsonl", ROWS)
    _, out, _ = run(capsys, "ultrafeedback", "--data-dir", str(tmp_path))
    assert "train: 2 pairs, 3 rejected, 1 files" in out
    assert "rejected 1: judges one reply" in out
    assert "the longer reply is chosen in 1 pairs and rejected in 1" in out
