"""The command line: quick help, one-line errors with exit code 2, JSON for machines."""

import json
import os
import re
import subprocess
import sys

import pytest

from dynamics.cli import main


def run(capsys, *arguments):
    """(exit code, output, error lines) of a command in this process."""
    try:
        code = main(list(arguments))
    except SystemExit as end:  # argparse leaves this way
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


LEAVES = (
    ("study", "run"), ("study", "status"), ("study", "report"), ("train",), ("eval",),
    ("data", "show"), ("data", "check"), ("data", "practice"), ("data", "prepare"), ("model", "info"), ("version",),
    ("data", "list"), ("data", "fetch"), ("data", "order"),
    ("model", "import"), ("model", "export"), ("score",), ("plan",),
)  # fmt: skip


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert f"example:\n  dynamics {' '.join(command)}" in out
    assert "--json" in out
    assert "--debug" in out


@pytest.mark.parametrize("command", [(), ("study",), ("data",), ("model",)], ids=" ".join)
def test_every_group_of_commands_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert f"example:\n  dynamics {' '.join(command)}" in out


def test_help_and_import_load_neither_jax_nor_tensorflow():
    program = (
        "import sys, dynamics, dynamics.cli\n"
        "try: dynamics.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'tensorflow', 'seqio', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_help_answers_in_six_tenths_of_a_cpu_second():
    before = os.times()
    subprocess.run([sys.executable, "-m", "dynamics.cli", "--help"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.6


def test_a_mistyped_command_offers_the_nearest(capsys):
    code, _, err = run(capsys, "stdy", "run")
    assert code == 2
    assert "did you mean 'study'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "run", "configs/practise.py"), "did you mean configs/practice.py"),
        (("study", "status", "tests"), "is not the folder of a study"),
        (("study", "report", "no/such/folder"), "is not the folder of a study"),
        (("eval", "tests"), "is not the folder of a run"),
        (("model", "info", "7c"), "did you mean '7b'"),
        (("data", "check", "no/such/file.jsonl"), "no/such/file.jsonl"),
        (("train", "configs/practice.py"), "has no function run()"),
        (("data", "show", "configs/practice.py", "--data-dir", "x"), "--data-dir has no use here"),
        (("data", "show", "configs/practice.py", "--rows", "-1"), "--rows -1"),
        (("data", "show", "configs/real_small.py", "--data-dir", "no/folder"), "folder no/folder (data_dir) does not"),
        (("data", "show", "configs/real_small.py", "--on-bad-record", "skip"), "'sample_sets' has no setting"),
        (("eval", "tests", "--records", "no.jsonl"), "is not the folder of a run"),
        (("data", "practice", "tests"), "is there already"),
        (("study", "run", "configs/practice.py", "--set", "run.batch.row=9"), "did you mean 'rows'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:40],
)
def test_a_user_error_is_one_line_and_exit_code_2(capsys, monkeypatch, request, tmp_path, arguments, message):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path))
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out


def test_debug_shows_the_traceback(capsys):
    code, _, err = run(capsys, "model", "info", "7c", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_a_read_only_results_folder_is_one_line(capsys, monkeypatch, request, tmp_path):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").write_text("a file where the folder should be")
    code, _, err = run(capsys, "study", "run", "configs/practice.py", "--output", str(tmp_path / "results"))
    assert code == 2
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_version_and_sizes_are_json_for_machines(capsys):
    assert json.loads(run(capsys, "version", "--json")[1])["jax"]
    described = json.loads(run(capsys, "model", "info", "13b", "--json")[1])
    assert described["parameters"] == 13_015_864_320
    assert len(json.loads(run(capsys, "model", "info", "--json")[1])) == 10


def test_check_names_every_bad_line_and_fails(capsys, tmp_path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ability": "math"}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], "ability": "math"}
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([json.dumps(good), json.dumps(bad), "{"]) + "\n", encoding="utf-8")
    code, out, err = run(capsys, "data", "check", str(path))
    assert code == 2
    assert f"{path}:2: messages[1].role is 'bot'; allowed: system, user, assistant" in err
    assert f"{path}:3:" in err
    assert "1 records, 2 rejected" in out
    code, out, _ = run(capsys, "data", "check", str(path), "--json")
    assert code == 2
    assert len(json.loads(out)["rejected"]) == 2


def test_check_reads_a_folder_as_a_study_would_and_every_file_whatever_the_others_are(capsys, tmp_path):
    (tmp_path / "math").mkdir()
    for split in ("train", "valid"):  # no line names its ability: the folder does
        row = {"instruction": f"{split}?", "output": "b"}
        (tmp_path / "math" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "math" / "test.jsonl").write_text("")
    code, out, err = run(capsys, "data", "check", str(tmp_path))
    assert (code, err.count("\n"), out.count("1 records, 0 rejected (math 1)")) == (2, 1, 2)
    assert f"{tmp_path}/math/test.jsonl is empty" in err
    code, out, _ = run(capsys, "data", "check", str(tmp_path / "math" / "train.jsonl"), "--json")
    assert code == 0
    assert json.loads(out)["files"][0]["abilities"] == {"math": 1}
    code, out, _ = run(capsys, "data", "check", str(tmp_path / "no"), str(tmp_path), "--json")
    assert code == 2
    assert (len(json.loads(out)["files"]), len(json.loads(out)["problems"])) == (2, 2)


def test_check_finds_what_is_trained_on_and_tested_too(capsys, tmp_path):
    for split in ("train", "valid", "test"):
        rows = [{"instruction": "the same", "output": "b"}] * (split != "valid") + [
            {"instruction": split, "output": "b"}
        ]
        (tmp_path / f"math_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    code, _, err = run(capsys, "data", "check", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path}/math_test.jsonl: 1 of its records stand in {tmp_path}/math_train.jsonl too" in err


def test_the_practice_set_as_files_is_read_back(capsys, tmp_path):
    folder = tmp_path / "practice"
    code, out, _ = run(capsys, "data", "practice", str(folder), "--records", "8", "--json")
    assert code == 0
    assert json.loads(out)["records"]["math"]["train"] == 8
    files = sorted(str(path) for path in folder.glob("*/*.jsonl"))
    assert len(files) == 30
    assert run(capsys, "data", "check", *files)[0] == 0
    code, _, err = run(capsys, "data", "practice", str(folder))
    assert code == 2
    assert "not an empty folder" in err


def test_show_prints_volumes_in_tokens_and_marks_what_is_trained(capsys, monkeypatch, request, tmp_path):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path))
    code, out, err = run(capsys, "data", "show", "configs/practice.py", "--json")
    assert code == 0, err
    view = json.loads(out)
    assert [row["ability"] for row in view["abilities"]][:2] == ["biology", "history"]
    assert all(
        sample["parts"][-1]["trained"] and sample["parts"][-1]["text"].endswith("<eot>") for sample in view["samples"]
    )
    first = view["abilities"][0]["volumes"]
    assert [cell["records"] for cell in first] == [cell["volume"] for cell in first]
    shown = run(capsys, "data", "show", "configs/practice.py")[1]
    assert shown.count("⟦") >= 10
    assert "…" not in shown, "a number is cut"


def test_order_tells_what_comes_when_before_training(capsys, monkeypatch, request, tmp_path):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path))
    config = tmp_path / "orders.py"
    config.write_text(
        "import dataclasses, runpy\n"
        "from dynamics.data.curriculum import Competence, Sorted\n"
        "from dynamics.data.difficulty import Length\n"
        "def study():\n"
        "    short = runpy.run_path('configs/practice.py')['study']()\n"
        "    source = dataclasses.replace(short.run.source, pool=8, num_valid=2, num_test=2, corpus_documents=120)\n"
        "    short = dataclasses.replace(short, run=dataclasses.replace(short.run, source=source, over_long='drop'))\n"
        "    orders = (short.run.order, Sorted(by=Length()), Competence(by=Length(of='all')))\n"
        "    return dataclasses.replace(short, orders=orders, volumes=(8,), seeds=(0,))\n"
    )
    figure = tmp_path / "orders.png"
    code, out, err = run(capsys, "data", "order", str(config), "--json", "--out", str(figure))
    assert code == 0, err
    orders = json.loads(out)["orders"]
    assert [one["order"] for one in orders][:2] == ["interleaved", "sorted by length, easiest first"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    shown = run(capsys, "data", "order", str(config))[1]
    assert "sorted by length, easiest first" in shown
    assert "first epoch by tenth\n" in shown
    budget = ["--set", "run.budget.epochs=0.5", "--set", "run.budget.min_updates=0"]
    short = run(capsys, "data", "order", str(config), *budget)[1]
    assert re.search(r"first epoch by tenth; the budget ends after \d+ of its 80 places \(-: not read\)", short)
    assert "mean difficulty by tenth, epoch by epoch" in shown  # competence ends after its first epoch
    assert "…" not in shown, "a number is cut"
