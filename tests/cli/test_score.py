"""`dynamics score`: one line a document, every bad line named, and an interrupted pass that ends in the same file."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dynamics.cli import main
from dynamics.data.sources import Files
from dynamics.data.template import DOIT, encode, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.eval.ability_eval import Evaluation
from dynamics.eval.logprobs import logprob_sums, plan_documents
from dynamics.model.convert import Params, export_model, load_model
from dynamics.model.llama import LlamaConfig, init
from dynamics.record import parse_record
from dynamics.study.prepare import Workspace
from dynamics.study.run import Batch, Budget, Run
from dynamics.study.single import train_run

TINY = LlamaConfig(
    name="tiny", vocab_size=448, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32,
    tied_head=True,
)  # fmt: skip
RECORDS = [
    {"instruction": f"What is {first} plus {second}?", "output": f"It is {first + second}. " * (1 + first % 4)}
    for first in range(6)
    for second in range(5)
]
TOKENS = [{"id": number, "tokens": list(range(number % 7 + 1, number % 7 + 2 + number))} for number in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row["instruction"] + " " + row["output"] for row in RECORDS] + ["USER: ASSISTANT: a b c d e f g h"] * 8
    return train_tokenizer(texts, vocab_size=380)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A model folder with a tokenizer that knows DoIT's special tokens."""
    path = tmp_path_factory.mktemp("score") / "model"
    own = Tokenizer.from_bytes(tokenizer.model, specials=tokenizer_specials(DOIT))
    config = dataclasses.replace(TINY, vocab_size=own.vocab_size)
    export_model(Params.of(init(config, jax.random.key(0)), own, max_length=128), path)
    return path


@pytest.fixture
def records(tmp_path):
    return written(tmp_path / "records.jsonl", [row | {"type": "math"} for row in RECORDS])


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(capsys, *arguments):
    """(exit code, output, error lines) of the command."""
    try:
        code = main(["score", *map(str, arguments)])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_records_of_a_model_folder_have_the_sums_of_their_trained_tokens(capsys, folder, records):
    code, out, err = score(capsys, folder, "--records", records, "--template", "doit", "--json")
    assert code == 0
    parsed = [parse_record(row, where="", ability="math") for row in RECORDS]
    own = Tokenizer.load(folder, specials=tokenizer_specials(DOIT))
    documents = [encode(DOIT, own, record.messages) for record in parsed]
    packing = plan_documents(documents, rows=1, length=256)
    sums = np.concatenate([values for _, values in logprob_sums(load_model(folder), documents, packing)])
    lines = lines_of(out)
    assert [set(line) for line in lines] == [{"id", "logprob_sum", "num_tokens"}] * len(RECORDS)
    assert [line["id"] for line in lines] == [record.id for record in parsed]
    assert [line["num_tokens"] for line in lines] == [document.num_trained for document in documents]
    np.testing.assert_allclose([line["logprob_sum"] for line in lines], sums, rtol=1e-5)
    assert "30 documents in 1 batches" in err


def test_token_lists_are_scored_after_their_first_token_on_any_mesh_and_rows(capsys, folder, tmp_path):
    given = written(tmp_path / "tokens.jsonl", TOKENS)
    _, out, _ = score(capsys, folder, "--tokens", given)
    _, other, _ = score(capsys, folder, "--tokens", given, "--rows", 4, "--length", 64, "--mesh", "data=2,fsdp=2")
    lines, other_lines = lines_of(out), lines_of(other)
    assert [(line["id"], line["num_tokens"]) for line in lines] == [
        (n, len(TOKENS[n]["tokens"]) - 1) for n in range(20)
    ]
    assert (lines[0]["logprob_sum"], lines[0]["num_tokens"]) == (0.0, 0)  # one token: nothing before it predicts it
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line["logprob_sum"] == pytest.approx(other_line["logprob_sum"], rel=1e-5)


def test_a_template_with_tokens_that_the_model_lacks_is_scored_and_told(capsys, folder, records):
    code, out, err = score(capsys, folder, "--records", records, "--template", "chatml")
    assert code == 0
    assert len(lines_of(out)) == len(RECORDS)
    assert "template 'chatml' needs 2 more: they are the mean of the others" in err


def test_weights_that_are_no_numbers_are_an_error_and_not_a_line(capsys, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: -len(content) // 2] + b"\xff" * (len(content) - len(content[: -len(content) // 2])))
    tokens = written(tmp_path / "t.jsonl", [{"id": "one", "tokens": [1, 2, 3]}])
    code, out, err = score(capsys, tmp_path / "model", "--tokens", tokens)
    assert (code, out) == (2, "")
    assert "'one' has log-probability nan" in err


@pytest.fixture(scope="module")
def run_folder(tokenizer, tmp_path_factory):
    """The folder of a finished run of one update, and the folder of its cache."""
    place = tmp_path_factory.mktemp("run")
    (place / "math").mkdir()
    for split in ("train", "valid", "test"):
        written(place / "math" / f"{split}.jsonl", [{"instruction": f"{split}?", "output": "7"}])
    tokenizer.save(place / "t.model")
    run = Run(
        source=Files(data_dir=str(place)), size=TINY, tokenizer=str(place / "t.model"), volume=1,
        batch=Batch(rows=1, length=64), budget=Budget(updates=1), evaluate_at=(1.0,),
        evaluation=Evaluation(max_new_tokens=2, max_length=64, row_length=64, batch_tokens=64, batch_size=1),
    )  # fmt: skip
    return train_run(run, place / "out", Workspace(place / "cache"), lambda fraction: None)[0], place / "cache"


def test_a_finished_run_is_scored_with_its_own_tokenizer_and_template(capsys, run_folder, records, monkeypatch):
    folder, cache = run_folder
    monkeypatch.setenv("DYNAMICS_CACHE", str(cache))
    code, out, _ = score(capsys, folder, "--records", records, "--mesh", "data=1")
    assert code == 0
    assert len(lines_of(out)) == len(RECORDS)
    assert all(line["logprob_sum"] < 0 for line in lines_of(out))
    code, _, err = score(capsys, folder, "--records", records, "--template", "vicuna")
    assert (code, "was trained with template 'doit'" in err) == (2, True)


def test_what_is_too_long_is_an_error_with_its_line_or_cut_or_left_out_and_counted(capsys, folder, tmp_path):
    given = written(tmp_path / "tokens.jsonl", TOKENS)
    arguments = (folder, "--tokens", given, "--length", 16, "--rows", 8)
    code, _, err = score(capsys, *arguments)
    assert code == 2
    assert f"{given}:17: 16 has 17 tokens and rows have 16; use --length 17" in err
    _, out, err = score(capsys, *arguments, "--over-long", "truncate")
    assert [line["num_tokens"] for line in lines_of(out)][-4:] == [15, 15, 15, 15]
    assert "documents cut to the length of a row: 4" in err
    _, out, err = score(capsys, *arguments, "--over-long", "drop")
    assert len(lines_of(out)) == 16
    assert "documents left out for being too long: 4" in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 3, "tokens": [1]}, "id 3 is that of line 1 too"),
        ({"id": "x"}, "tokens is missing"),
        ({"tokens": [1]}, "id is missing"),
        ({"id": "x", "tokens": []}, r"tokens is []; it must be a list of at least one token id"),
        ({"id": "x", "tokens": [5, 9999]}, "tokens[1] is 9999; the model knows the ids 0 to 379"),
        ({"id": "x", "tokens": [-1]}, "tokens[0] is -1"),
        ({"id": "x", "tokens": [1.0]}, "tokens[0] is 1.0"),
        ({"id": True, "tokens": [1]}, "id is True; it must be a text or a whole number"),
        ([1, 2], "is no JSON object"),
    ],
)
def test_a_bad_token_list_is_named_by_its_line_or_left_out_and_counted(capsys, folder, tmp_path, row, message):
    given = written(tmp_path / "tokens.jsonl", [{"id": 3, "tokens": [1, 2, 3]}, row])
    code, _, err = score(capsys, folder, "--tokens", given)
    assert (code, f"{given}:2: " in err, message in err) == (2, True, True), err
    code, out, err = score(capsys, folder, "--tokens", given, "--on-bad-record", "skip")
    assert (code, len(lines_of(out))) == (0, 1)
    assert "bad lines left out: 1" in err


def test_a_record_that_stands_twice_is_scored_once_and_counted(capsys, folder, tmp_path):
    rows = [row | {"type": "math"} for row in (RECORDS[0], RECORDS[1], RECORDS[0])]
    given = written(tmp_path / "records.jsonl", rows)
    _, out, err = score(capsys, folder, "--records", given, "--template", "doit")
    assert len(lines_of(out)) == 2
    assert "scored once: 1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--records", "r.jsonl"), "need --template NAME; known: doit"),
        (("--records", "r.jsonl", "--template", "dolt"), "no template is named 'dolt'"),
        (("--tokens", "r.jsonl", "--template", "doit"), "--template has no use with --tokens"),
        (("--tokens", "missing.jsonl"), "missing.jsonl"),
        (("--tokens", "r.jsonl", "--mesh", "rows=2"), "give AXIS=NUMBER"),
        (("--tokens", "r.jsonl", "--mesh", "data=99"), "there are 8"),
        (("--tokens", "r.jsonl", "--rows", "3"), "--rows 3 cannot be split over the mesh's 8 row shards"),
        (("--tokens", "r.jsonl", "--length", "1"), "rows have at least 2 tokens"),
        ((), "one of the arguments --records --tokens is required"),
    ],
)
def test_mistakes_say_what_is_allowed(capsys, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "r.jsonl", TOKENS)
    code, out, err = score(capsys, folder, *arguments)
    assert (code, out, message in err) == (2, "", True), err


def test_a_folder_that_is_no_model_is_refused(capsys, tmp_path):
    code, _, err = score(capsys, tmp_path, "--tokens", written(tmp_path / "t.jsonl", TOKENS))
    assert (code, "is neither a model folder" in err) == (2, True)


# --- a file that can be resumed

ROWS = ("--rows", "8", "--length", "32")


def resumable(tmp_path):
    many = [{"id": f"n{number}", "tokens": TOKENS[number % 20]["tokens"]} for number in range(120)]
    return written(tmp_path / "many.jsonl", many)


def test_a_pass_cut_anywhere_ends_in_the_identical_file(capsys, folder, tmp_path):
    given, output = resumable(tmp_path), tmp_path / "scores.jsonl"
    arguments = (folder, "--tokens", given, *ROWS, "--output", output)
    code, out, _ = score(capsys, *arguments, "--json")
    told = json.loads(out)
    assert (code, told["documents"], told["found_done"]) == (0, 120, 0)
    whole = output.read_bytes()
    assert len(whole.splitlines()) == 120
    for cut in (len(whole), len(whole) - 1, len(whole) // 2, 5, 0):
        output.write_bytes(whole[:cut])
        code, out, _ = score(capsys, *arguments)
        assert (code, output.read_bytes() == whole) == (0, True), cut
        assert ("found done" in out) == (cut > len(whole) // 3)


def test_a_killed_pass_goes_on_to_the_identical_file(folder, tmp_path, capsys):
    given, output, expected = resumable(tmp_path), tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    assert score(capsys, folder, "--tokens", given, *ROWS, "--output", expected)[0] == 0
    command = [sys.executable, "-m", "dynamics.cli", "score", folder, "--tokens", given, *ROWS, "--output", output]
    for number, expected_code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        output.unlink(missing_ok=True)
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE)
        while process.poll() is None and not (output.exists() and output.stat().st_size):
            time.sleep(0.002)
        process.send_signal(number)
        process.communicate(timeout=60)
        # The pass may have been done already: what counts is that it was not ended in any third way.
        assert process.returncode in (0, expected_code)
        assert score(capsys, folder, "--tokens", given, *ROWS, "--output", output)[0] == 0
        assert output.read_bytes() == expected.read_bytes()


def test_another_input_does_not_go_on_in_the_same_file(capsys, folder, tmp_path):
    given, output = resumable(tmp_path), tmp_path / "scores.jsonl"
    arguments = (folder, "--tokens", given, *ROWS, "--output", output)
    assert score(capsys, *arguments)[0] == 0
    whole = output.read_bytes()
    for changed, message in (
        ((folder, "--tokens", given, "--rows", "16", "--length", "32", "--output", output), "rows (8, now 16)"),
        ((folder, "--tokens", given, "--rows", "8", "--length", "64", "--output", output), "length (32, now 64)"),
    ):
        code, _, err = score(capsys, *changed)
        assert (code, message in err) == (2, True), err
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = next(other.glob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    code, _, err = score(capsys, other, *arguments[1:])
    assert (code, "begun with other settings: model (" in err) == (2, True), err
    written(given, TOKENS)
    code, _, err = score(capsys, *arguments)
    assert (code, "data (" in err) == (2, True), err
    assert output.read_bytes() == whole


def test_a_file_that_is_not_of_this_command_is_left_alone(capsys, folder, tmp_path):
    given, output = resumable(tmp_path), tmp_path / "scores.jsonl"
    output.write_text("mine\n")
    code, _, err = score(capsys, folder, "--tokens", given, *ROWS, "--output", output)
    assert (code, "was not begun by this command" in err, output.read_text()) == (2, True, "mine\n")
    output.unlink()
    assert score(capsys, folder, "--tokens", given, *ROWS, "--output", output)[0] == 0
    lines = output.read_text().splitlines()
    output.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    code, _, err = score(capsys, folder, "--tokens", given, *ROWS, "--output", output)
    assert (code, "is not the score of 'n0'" in err) == (2, True), err
