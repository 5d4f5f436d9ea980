"""`dynamics eval --benchmark`: any model on published tests, from one command that can be killed and gone on with."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dynamics.cli import main
from dynamics.data.sources import Files
from dynamics.data.template import DOIT, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.eval.ability_eval import prepare
from dynamics.eval.benchmark_eval import score_benchmarks
from dynamics.eval.benchmarks import CEval, Cmmlu
from dynamics.eval.settings import Evaluation
from dynamics.model.convert import Params, export_model, load_model
from dynamics.model.llama import LlamaConfig, init
from dynamics.record import ABILITY_NAMES
from dynamics.study.benchmark import doit_tests
from dynamics.study.prepare import Workspace
from dynamics.study.run import Batch, Budget, Run
from dynamics.study.single import train_run

TINY = LlamaConfig(
    name="tiny", vocab_size=448, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32,
    tied_head=True,
)  # fmt: skip
SUBJECTS = {"anatomy": 9, "virology": 5}
TEXTS = [
    "题目：心脏有几个腔？\nA. 一\nB. 二\nC. 三\nD. 四\n答案是：A",
    "以下是关于解剖学的单项选择题",
    "A B C D (A)(B)(C)(D)",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 8, vocab_size=400)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A model folder with a tokenizer that knows DoIT's special tokens."""
    path = tmp_path_factory.mktemp("evaluate") / "model"
    own = Tokenizer.from_bytes(tokenizer.model, specials=tokenizer_specials(DOIT))
    config = dataclasses.replace(TINY, vocab_size=own.vocab_size)
    export_model(Params.of(jax.jit(init, static_argnums=0)(config, jax.random.key(0)), own, max_length=2048), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CMMLU and AGIEval in their layouts, hand-made."""
    home = tmp_path_factory.mktemp("data")
    for split, sizes in (("test", SUBJECTS), ("dev", dict.fromkeys(SUBJECTS, 5))):
        (home / "cmmlu" / split).mkdir(parents=True)
        for subject, size in sizes.items():
            rows = [f"{i},心脏有{i}个腔？,一,二,三{'三' * i},四,{'ABCD'[i % 4]}" for i in range(size)]
            text = "\n".join([",Question,A,B,C,D,Answer", *rows]) + "\n"
            (home / "cmmlu" / split / f"{subject}.csv").write_text(text, encoding="utf-8")
    (home / "agieval").mkdir()
    rows = [
        {"passage": "", "question": f"心脏{i}", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "B"}
        for i in range(4)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (home / "agieval" / "gaokao-biology.jsonl").write_text(lines, encoding="utf-8")
    return home


def evaluate(capsys, *arguments):
    """(exit code, output, errors) of the command."""
    try:
        code = main(["eval", *map(str, arguments)])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def asked(folder, data, *more):
    return folder, "--benchmark", "cmmlu", "--data-dir", data, "--template", "doit", "--mesh", "data=1", *more


def test_a_model_folder_is_scored_as_the_library_scores_it(capsys, folder, data):
    code, out, err = evaluate(capsys, *asked(folder, data, "--shots", 0, 5, "--json"))
    assert code == 0, err
    entries = json.loads(out)["scores"]
    own = Tokenizer.load(folder, specials=tokenizer_specials(DOIT))
    expected = score_benchmarks(load_model(folder), [Cmmlu(data_dir=str(data / "cmmlu"))], tokenizer=own, template=DOIT)
    for entry, other in zip(entries, expected, strict=True):
        assert {**entry, "seconds": 0} == {**other, "seconds": 0}
    assert "letters are the pieces A B C D" in err
    assert "14 questions in 2 tasks" in err


def test_what_a_limit_leaves_of_doits_tests_is_counted_and_role_play_is_known_by_any_spelling(folder, tmp_path):
    doit_arguments(folder, tmp_path)
    path = tmp_path / "curated/test/ceval_physician.json"
    write_lines(path, twelve("一", "B"), twelve("二", "C"))
    tests, counts = doit_tests(str(tmp_path), ("ceval_physician", "role-play"), published=False, limit=1)
    assert [test.ability for test in tests] == ["role_play", "ceval_physician"]
    assert counts == {"left_out": 1, "beyond_limit": 1}


@pytest.mark.slow
def test_several_benchmarks_a_mesh_and_the_letters_of_an_answer(capsys, folder, data, tmp_path):
    code, out, err = evaluate(
        capsys, folder, "--benchmark", "cmmlu", "agieval", "--data-dir", data, "--template", "doit", "--shots", 0,
        "--letters", "answer", "--mesh", "data=2", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "letters are the pieces ▁A ▁B ▁C ▁D" in err
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["benchmark", "cmmlu", "agieval"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "agieval-0.png", "cmmlu-0.png", "items.jsonl", "scores.csv", "scores.json", "settings.json",
    ]  # fmt: skip
    rows = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert rows[0] == "benchmark,shots,task,n,accuracy,chance,standard_error"
    assert [row.split(",")[2] for row in rows[1:]] == [
        "anatomy", "virology", "mean of tasks", "mean of items", "gaokao-biology", "mean of tasks", "mean of items",
    ]  # fmt: skip
    assert rows[1].split(",")[3:] == [*rows[1].split(",")[3:5], "0.25000", rows[1].split(",")[6]]


def lines_of(folder):
    """The lines of a pass, without the time they took."""
    return [{**json.loads(line), "seconds": 0} for line in (folder / "items.jsonl").read_text().splitlines()]


def scores_of(folder):
    return [{**entry, "seconds": 0} for entry in json.loads((folder / "scores.json").read_text())]


@pytest.mark.parametrize("batch_tokens", [2048, pytest.param(512, marks=pytest.mark.slow)])
def test_a_pass_cut_anywhere_goes_on_to_the_same_lines(capsys, folder, data, tmp_path, batch_tokens):
    output = tmp_path / "out"
    arguments = asked(folder, data, "--shots", 0, 5, "--output", output, "--batch-tokens", batch_tokens)
    assert evaluate(capsys, *arguments)[0] == 0
    whole, lines, scores = (output / "items.jsonl").read_bytes(), lines_of(output), scores_of(output)
    assert len(lines) == 28
    for cut in (len(whole), len(whole) - 1, len(whole) // 2, 0):
        (output / "items.jsonl").write_bytes(whole[:cut])
        code, _, err = evaluate(capsys, *arguments)
        assert code == 0, err
        assert lines_of(output) == lines
        assert scores_of(output) == scores


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGKILL, (-9,)), (signal.SIGINT, (130,))])
def test_a_stopped_pass_goes_on(folder, data, tmp_path, capsys, number, codes):
    output, expected = tmp_path / "out", tmp_path / "expected"
    arguments = asked(folder, data, "--shots", 0, 5, "--batch-tokens", 512)
    command = [sys.executable, "-m", "dynamics.cli", "eval", *arguments, "--output", output]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE)
    items = output / "items.jsonl"
    while process.poll() is None and not (items.exists() and items.stat().st_size):
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode in (0, *codes)  # it may have been done already
    assert evaluate(capsys, *arguments, "--output", output)[0] == 0
    assert evaluate(capsys, *arguments, "--output", expected)[0] == 0
    assert lines_of(output) == lines_of(expected)


def test_other_settings_do_not_go_on_in_the_same_folder(capsys, folder, data, tmp_path):
    output = tmp_path / "out"
    assert evaluate(capsys, *asked(folder, data, "--shots", 0, "--output", output))[0] == 0
    before = (output / "items.jsonl").read_bytes()
    for more, named in (
        (("--shots", 0, "--letters", "answer"), "cmmlu 0 differ"),
        (("--shots", 0, "--limit", 2), "cmmlu 0 differ"),
        (("--shots", 0, "--compute", "bfloat16"), "model differ"),
    ):
        code, _, err = evaluate(capsys, *asked(folder, data, *more, "--output", output))
        assert (code, named in err) == (2, True), err
    assert (output / "items.jsonl").read_bytes() == before
    (output / "items.jsonl").write_text("mine\n")
    code, _, err = evaluate(capsys, *asked(folder, data, "--shots", 0, "--output", output))
    assert (code, "items.jsonl:1 is no line of this command" in err) == (2, True), err


def test_more_and_fewer_tests_go_on_in_the_same_folder(capsys, folder, data, tmp_path):
    output, expected = tmp_path / "out", tmp_path / "expected"
    assert evaluate(capsys, *asked(folder, data, "--shots", 0, 5, "--output", expected))[0] == 0
    assert evaluate(capsys, *asked(folder, data, "--shots", 5, "--output", output))[0] == 0
    code, _, err = evaluate(capsys, *asked(folder, data, "--shots", 5, 0, "--limit", 2, "--output", output))
    assert (code, "(cmmlu 5 differ)" in err) == (2, True), err
    assert evaluate(capsys, *asked(folder, data, "--shots", 0, 5, "--output", output))[0] == 0  # more
    assert sorted(map(str, lines_of(output))) == sorted(map(str, lines_of(expected)))
    assert scores_of(output) == scores_of(expected)
    before = (output / "items.jsonl").read_bytes()
    code, out, err = evaluate(capsys, *asked(folder, data, "--shots", 5, "--output", output, "--json"))  # fewer
    assert (code, [one["shots"] for one in json.loads(out)["scores"]]) == (0, [5]), err
    assert (output / "items.jsonl").read_bytes() == before
    assert scores_of(output) == scores_of(expected)
    assert len((output / "scores.csv").read_text().splitlines()) == 1 + 2 * 4


def twelve(question: str, gold: str, *, longer: int = 0) -> dict:
    """A record of DoIT's C-Eval files: five examples, each question and answer a message, then the question."""
    asked = [*((f"例{i}{'长' * longer}\nA. 一\nB. 二\nC. 三\nD. 四\n答案：", "A") for i in range(5)), (question, gold)]
    turns = [turn for text, letter in asked for turn in (("user", text), ("assistant", letter))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "type": "ceval_physician_fshot", "question_format": 0, "idx": 0}


def write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_ceval_is_asked_from_its_own_csv_files_and_from_the_records_of_doit(capsys, folder, tmp_path):
    for split, size in (("dev", 5), ("val", 6)):
        rows = [f"{i},心脏有{i}个腔？,一,二,三,四,{'ABCD'[i % 4]}" + ",因为" * (split == "dev") for i in range(size)]
        head = "id,question,A,B,C,D,answer" + ",explanation" * (split == "dev")
        for subject in ("law", "logic"):
            (tmp_path / "ceval" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "ceval" / split / f"{subject}_{split}.csv").write_text("\n".join([head, *rows]) + "\n", "utf-8")
    records = [twelve(f"心脏有{i}个腔？\nA. 一\nB. 二\nC. 三\nD. 四\n答案：", "ABCD"[i % 4]) for i in range(3)]
    write_lines(tmp_path / "ceval/curated/test/ceval_physician.json", *records)
    arguments = (
        folder, "--benchmark", "ceval", "--data-dir", tmp_path, "--template", "doit", "--mesh", "data=1",
        "--shots", 0, 5, "--output", tmp_path / "out",
    )  # fmt: skip
    code, out, err = evaluate(capsys, *arguments)
    assert code == 0, err
    assert "letters are the pieces ▁A ▁B ▁C ▁D" in err
    for entry, shots in zip(scores_of(tmp_path / "out"), (0, 5), strict=True):
        assert (entry["benchmark"], entry["shots"], entry["num_items"]) == ("ceval", shots, 15)
        assert {task: len(one["correct"]) for task, one in entry["tasks"].items()} == {
            "physician": 3, "logic": 6, "law": 6,
        }  # fmt: skip
        assert entry["counts"]["too_long"] == entry["counts"]["shots_dropped"] == 0
    assert "ceval, 5 shots: 2 tasks without a file" in out  # the two other parts of DoIT
    own = Tokenizer.load(folder, specials=tokenizer_specials(DOIT))
    expected = score_benchmarks(
        load_model(folder), [CEval(data_dir=str(tmp_path / "ceval"), shots=(0, 5))], tokenizer=own, template=DOIT
    )
    assert scores_of(tmp_path / "out") == [{**one, "seconds": 0} for one in expected]


def test_tasks_and_a_limit_leave_out_and_are_counted(capsys, folder, data):
    arguments = asked(folder, data, "--shots", 0, "--tasks", "virology", "--limit", 3)
    code, out, err = evaluate(capsys, *arguments)
    assert code == 0, err
    assert out.splitlines()[1].split()[:4] == ["cmmlu", "0", "1", "3"]
    assert "cmmlu, 0 shots: 2 left out of the test" in out
    code, _, err = evaluate(capsys, *asked(folder, data, "--tasks", "virologie"))
    assert (code, "--tasks virologie: no such task in cmmlu" in err) == (2, True), err


def test_the_folder_may_be_the_benchmarks_own(capsys, folder, data):
    one = evaluate(capsys, *asked(folder, data, "--shots", 0, "--json"))
    own = evaluate(capsys, *asked(folder, data / "cmmlu", "--shots", 0, "--json"))
    assert one[0] == own[0] == 0
    assert json.loads(one[1])["scores"][0]["tasks"] == json.loads(own[1])["scores"][0]["tasks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmark", "cmmlu"), "give the folder that holds them"),
        (("--benchmark", "cmlu", "--data-dir", "DATA"), "did you mean 'cmmlu'?"),
        (("--benchmark", "cmmlu", "--data-dir", "DATA"), "--template NAME: doit, vicuna"),
        (("--benchmark", "cmmlu", "--data-dir", "DATA", "--template", "dolt"), "no template is named 'dolt'"),
        (("--shots", "0"), "--shots is for benchmarks"),
        (("--published",), "--published is for benchmarks"),
        (("--benchmark", "cmmlu", "--data-dir", "DATA", "--split", "valid"), "for a run's own abilities"),
        (("--benchmark", "cmmlu", "--data-dir", "DATA", "--published", "--letters", "answer"), "bare letter pieces"),
        (("--benchmark", "cmmlu", "--data-dir", "nowhere", "--template", "doit"), "no folder nowhere"),
        (("--benchmark", "cmmlu", "--data-dir", "DATA", "--template", "doit", "--shots", "-1"), "whole numbers >= 0"),
    ],
)
def test_mistakes_say_what_is_allowed(capsys, folder, data, arguments, message):
    code, out, err = evaluate(capsys, folder, *(str(data) if one == "DATA" else one for one in arguments))
    assert (code, out, message in err) == (2, "", True), err


@pytest.fixture(scope="module")
def run_folder(tokenizer, tmp_path_factory):
    """The folder of a finished run of one update, and the folder of its cache."""
    place = tmp_path_factory.mktemp("run")
    (place / "math").mkdir()
    for split in ("train", "valid", "test"):
        row = json.dumps({"instruction": f"{split}?", "output": "7"})
        (place / "math" / f"{split}.jsonl").write_text(row + "\n")
    tokenizer.save(place / "t.model")
    run = Run(
        source=Files(data_dir=str(place)), size=TINY, tokenizer=str(place / "t.model"), volume=1,
        batch=Batch(rows=1, length=64), budget=Budget(updates=1), evaluate_at=(1.0,),
        evaluation=Evaluation(max_new_tokens=2, max_length=64, row_length=64, batch_tokens=64, batch_size=1),
    )  # fmt: skip
    return train_run(run, place / "out", Workspace(place / "cache"), lambda fraction: None)[0], place / "cache"


@pytest.mark.slow
def test_a_finished_run_knows_its_template(capsys, run_folder, data, monkeypatch):
    folder, cache = run_folder
    monkeypatch.setenv("DYNAMICS_CACHE", str(cache))
    more = ("--benchmark", "cmmlu", "--data-dir", data, "--shots", 0, "--mesh", "data=1", "--json")
    code, out, err = evaluate(capsys, folder, *more)
    assert code == 0, err
    (entry,) = json.loads(out)["scores"]
    assert np.isclose(entry["micro"], np.mean([int(c) for task in entry["tasks"].values() for c in task["correct"]]))
    code, out, err = evaluate(capsys, folder, "--mesh", "data=1")  # without --benchmark: its own abilities, as before
    assert (code, "mean of abilities" in out) == (0, True), err


def doit_arguments(folder, tmp_path):
    """The command on the published test files of the ten abilities, an item each; there need be no others."""
    turns = [{"role": "user", "content": "一加一？"}, {"role": "assistant", "content": "二"}]
    for ability in ABILITY_NAMES:
        row = {"messages": turns, "type": ability, "question_format": 1, "choices": ["二", "三", "四"]}
        write_lines(tmp_path / f"curated/test/{ability}_test.json", row)
    return (
        folder, "--benchmark", "doit", "--data-dir", tmp_path, "--template", "doit", "--mesh", "data=1",
        "--output", tmp_path / "out",
    )  # fmt: skip


def test_the_published_test_files_are_answered_and_gone_on_with(capsys, folder, tmp_path):
    arguments = doit_arguments(folder, tmp_path)
    code, out, err = evaluate(capsys, *arguments, "--json")
    assert code == 0, err
    (entry,) = json.loads(out)["scores"]
    assert (entry["benchmark"], entry["num_items"], set(entry["tasks"])) == ("doit", 10, set(ABILITY_NAMES))
    assert entry["chance_macro"] == pytest.approx(1 / 3)
    lines = lines_of(tmp_path / "out")
    items = tmp_path / "out" / "items.jsonl"
    items.write_text("".join(items.read_text().splitlines(keepends=True)[:4]))
    assert evaluate(capsys, *arguments)[0] == 0
    assert lines_of(tmp_path / "out") == lines


def test_five_long_examples_leave_less_room_than_an_answer_may_take(folder, tmp_path):
    """Only a prompt that fills the length alone is not asked."""
    doit_arguments(folder, tmp_path)
    write_lines(
        tmp_path / "curated/test/ceval_physician.json", twelve("题", "B", longer=80), twelve("题", "B", longer=500)
    )
    own = Tokenizer.load(folder, specials=tokenizer_specials(DOIT))
    for published in (False, True):
        ((test,), counts) = doit_tests(str(tmp_path), ("ceval_physician",), published=published, limit=None)
        prepared = prepare(test.records, own, DOIT, test.settings)
        assert (counts, prepared.too_long) == ({"left_out": 0}, {1})
        (prompt,) = (prompt for _, prompt in prepared.prompts)
        assert 1024 < len(prompt) < 2048


@pytest.mark.slow
def test_the_published_test_files_are_judged_as_published(capsys, folder, tmp_path):
    arguments = doit_arguments(folder, tmp_path)
    code, out, _ = evaluate(capsys, *arguments, "--published", "--json")
    (entry,) = json.loads(out)["scores"]
    assert (code, entry["rules"]) == (0, "published")
    assert entry["published_average"] == pytest.approx(entry["micro"] / 2)  # one item an ability
