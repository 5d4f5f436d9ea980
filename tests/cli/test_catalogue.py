"""`dynamics data list|fetch|show NAME`: the catalogue from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamics.cli import main
from dynamics.cli.catalogue import kind_of_reason
from dynamics.data.catalogue import CATALOGUE
from tests.data.fake_hub import COMMIT, FakeHub, serving


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(["data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _sharegpt(first: str, *others: str) -> dict:
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return {"conversations": [{"from": speakers[index % 2], "value": text} for index, text in enumerate(others)]}


@pytest.fixture
def sharegpt(tmp_path: Path) -> Path:
    rows = [_sharegpt("human", "Hi", "Hello"), _sharegpt("gpt", "Hello"), _sharegpt("human", "A", "B", "C")]
    folder = tmp_path / "sharegpt"
    folder.mkdir()
    (folder / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps([*rows, rows[0]]), encoding="utf-8")
    return tmp_path


def test_the_list_names_every_entry_and_what_is_there(capsys, sharegpt: Path):
    code, out, _ = run(capsys, "list", "--data-dir", str(sharegpt))
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert all(one.name in rows for one in CATALOGUE)
    assert " yes " in rows["sharegpt"]
    assert " no " in rows["conifer"]
    assert "13,606 ᶜ" in rows["conifer"]


def test_the_list_for_machines(capsys, sharegpt: Path):
    _, out, _ = run(capsys, "list", "--data-dir", str(sharegpt), "--json")
    entries = {one["name"]: one for one in json.loads(out)["entries"]}
    assert entries["sharegpt"]["here"] == "yes"
    assert entries["cmmlu"]["checksums"] == 134
    assert entries["doit"]["certainty"]["num_bytes"] == "unknown"


def test_show_counts_records_and_says_what_is_rejected(capsys, sharegpt: Path):
    code, out, _ = run(capsys, "show", "sharegpt", "--data-dir", str(sharegpt), "--rows", "1")
    assert code == 0
    assert "train: 1 records, 3 rejected, 1 files" in out
    assert "rejected 1: conversations[N] is a turn of the assistant" in out
    assert "rejected 1: conversations ends with a turn of the user" in out
    assert "rejected 1: has the content of line N again" in out
    assert "user: Hi\n      assistant: Hello" in out
    assert "not compared with anything" in out


def test_show_for_machines(capsys, sharegpt: Path):
    _, out, _ = run(capsys, "show", "sharegpt", "--data-dir", str(sharegpt), "--json", "--rows", "2")
    (train,) = json.loads(out)["splits"].values()
    assert (train["records"], train["rejected"]) == (1, 3)
    assert train["abilities"] == {"sharegpt": {"records": 1, "rejected": 3}}
    assert [row["line"] for row in train["rejected_rows"]] == [1, 1, 1]  # a JSON list on one line
    assert len(train["samples"]) == 1


def test_show_stops_at_the_first_bad_row_where_it_is_asked_to(capsys, sharegpt: Path):
    code, _, err = run(capsys, "show", "sharegpt", "--data-dir", str(sharegpt), "--on-bad-record", "error")
    assert code == 2
    assert "cleaned_split.json:1: conversations[0] is a turn of the assistant" in err


def test_show_of_preferences_prints_both_replies(capsys, tmp_path: Path):
    prompt = {"role": "user", "content": "Why?"}
    sides = {name: [prompt, {"role": "assistant", "content": f"a {name} one"}] for name in ("chosen", "rejected")}
    (tmp_path / "ultrafeedback").mkdir()
    (tmp_path / "ultrafeedback/train_prefs.jsonl").write_text(json.dumps(sides) + "\n", encoding="utf-8")
    _, out, _ = run(capsys, "show", "ultrafeedback", "--data-dir", str(tmp_path))
    assert "train: 1 pairs, 0 rejected" in out
    assert "chosen: a chosen one\n      rejected: a rejected one" in out
    assert "not there: test" in out


def test_show_counts_the_questions_of_a_benchmark(capsys, tmp_path: Path):
    head = "id,question,A,B,C,D,answer\n"
    for split, count in (("dev", 5), ("val", 2)):
        path = tmp_path / f"ceval/{split}/law_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(head + "".join(f"{i},q{i},a,b,c,d,C\n" for i in range(count)), encoding="utf-8")
    code, out, _ = run(capsys, "show", "ceval", "--data-dir", str(tmp_path), "--rows", "2")
    assert code == 0
    assert "dev: 5 questions in 1 files" in out
    assert "asked: 2 questions of 1 tasks" in out
    assert "tasks without a file: physician, teacher_qualification, urban_and_rural_planner" in out
    assert "- law/0\n" in out
    assert "q1 A. a B. b C. c D. d 答案：\n      gold: C" in out
    assert "not there: test" in out
    assert (
        len(json.loads(run(capsys, "show", "ceval", "--data-dir", str(tmp_path), "--json")[1])["asked"]["samples"]) == 1
    )
    code, _, err = run(capsys, "show", "ceval", "--data-dir", str(tmp_path), "--on-bad-record", "skip")
    assert code == 2
    assert "--on-bad-record skip has no use for ceval" in err


def test_show_says_what_a_benchmark_leaves_out_or_why_it_is_refused(capsys, tmp_path: Path):
    one = {"passage": None, "question": "Which?", "options": ["(A)a", "(B)b"], "label": "A"}
    path = tmp_path / "agieval/gaokao-physics.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(one) + "\n" + json.dumps(one | {"label": ["A", "B"]}) + "\n", encoding="utf-8")
    cells = "".join(f'row {i},"{one!r}"\n' for i in range(1, 10))
    (tmp_path / "agieval/few_shot_prompts.csv").write_text(",gaokao-physics\n" + cells, encoding="utf-8")
    (tmp_path / "agieval/lsat-ar.jsonl").write_text(json.dumps(one), encoding="utf-8")
    known = CATALOGUE[[entry.name for entry in CATALOGUE].index("agieval")].checksums
    assert "gaokao-physics.jsonl" in known
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamics.data.fetched.compare_known", lambda entry, folder: 0)
        _, out, _ = run(capsys, "show", "agieval", "--data-dir", str(tmp_path))
        path.write_text(json.dumps(one | {"options": ["(A)a"]}) + "\n", encoding="utf-8")
        code, _, err = run(capsys, "show", "agieval", "--data-dir", str(tmp_path))
    assert "asked: 1 questions of 1 tasks\n  left out 1: several golds (gaokao-physics 1)" in out
    assert "files of no known task: lsat-ar" in out
    assert code == 2
    assert "gaokao-physics.jsonl:1: options has 1 texts" in err


def test_show_does_not_take_a_neighbour_for_the_set(capsys, tmp_path: Path):
    (tmp_path / "cmmlu/dev").mkdir(parents=True)
    (tmp_path / "cmmlu/dev/agronomy.csv").write_text("x\n", encoding="utf-8")
    code, _, err = run(capsys, "show", "ceval", "--data-dir", str(tmp_path))
    assert code == 2
    assert f"{tmp_path}/ceval has no files of ceval" in err
    assert {line.split()[0] for line in run(capsys, "list", "--data-dir", str(tmp_path))[1].splitlines()
            if " yes " in line} == {"cmmlu"}  # fmt: skip


def test_show_of_doit_refuses_what_its_source_refuses(capsys, tmp_path: Path):
    path = tmp_path / "doit/curated/full/maths_full.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"messages": []}\n', encoding="utf-8")
    code, _, err = run(capsys, "show", "doit", "--data-dir", str(tmp_path))
    assert code == 2
    assert "curated/full/maths_full.json in" in err
    assert "is of none of the ten abilities" in err
    assert "lacks 10 of the 10 files" in err


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (
            "byte 0xff at offset 1,234 of the file is not UTF-8; convert it",
            "byte 0xff at offset N of the file is not UTF-8",
        ),
        ("messages[12].content is 'x'; it must", "messages[N].content is '...'"),
        ("has the content of line 12 again", "has the content of line N again"),
        ("question_format is 7; allowed: 0, 1", "question_format is 7"),
    ],
)
def test_reasons_keep_their_names_and_lose_their_positions(reason: str, shown: str):
    assert kind_of_reason(reason) == shown


@pytest.mark.parametrize("command", ["show", "fetch"])
def test_a_wrong_name_offers_the_nearest(capsys, tmp_path: Path, command: str):
    code, _, err = run(capsys, command, "conifr", "--data-dir", str(tmp_path))
    assert code == 2
    assert "the catalogue has no entry 'conifr' (did you mean 'conifer'?); it has doit, conifer" in err


def test_show_of_what_is_not_there_says_how_to_get_it(capsys, tmp_path: Path):
    code, _, err = run(capsys, "show", "dolly", "--data-dir", str(tmp_path))
    assert code == 2
    assert (
        f"{tmp_path}/dolly has no files of dolly; run dynamics data fetch dolly --data-dir {tmp_path}; without" in err
    )
    assert err.count("\n") == 1


def test_fetch_show_and_list_from_a_hub(tmp_path: Path):
    """As a user runs it: a process of its own, with HF_ENDPOINT naming the hub."""
    row = {"instruction": "Who?", "context": "", "response": "Ann", "category": "open_qa"}
    files = {"databricks-dolly-15k.jsonl": json.dumps(row).encode() + b"\n", "README.md": b"x"}
    with serving(FakeHub(repository="databricks/databricks-dolly-15k", files=files)) as hub:
        calls = [
            ["fetch", "dolly", "--json"],
            ["fetch", "dolly"],
            ["show", "dolly"],
            ["list"],
        ]
        program = "import sys, json\nfrom dynamics.cli import main\n" + "".join(
            f"assert main({['data', *call, '--data-dir', str(tmp_path)]!r}) == 0\nprint('=====')\n" for call in calls
        )
        program += "assert not {'jax', 'tensorflow', 'numpy'} & set(sys.modules)\n"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    first, second, show, listing = done.stdout.split("=====\n")[:4]
    assert json.loads(first)["commit"] == COMMIT
    assert json.loads(first)["downloaded"] == ["databricks-dolly-15k.jsonl"]
    assert "1 files, 0.081 kB, of databricks/databricks-dolly-15k at 111111111111; nothing to download" in second
    assert "1 files are those fetched from databricks/databricks-dolly-15k at 111111111111" in show
    assert "train: 1 records, 0 rejected" in show
    assert "fetched 11111111" in listing
    assert hub.asked == {"databricks-dolly-15k.jsonl": 1}
