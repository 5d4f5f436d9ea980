"""`dynamics model import|export|info` on folders, and what they say when something does not fit."""

import json

import numpy as np
import pytest
from parity.toys import CONFIGS, weights, write_toy
from safetensors.numpy import load_file
from train.tiny import model

from dynamics.cli import main
from dynamics.config import to_plain
from dynamics.data.practice import Practice
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.model.convert import load_model, read_config, tokenizer_path
from dynamics.study.folder import write_json
from dynamics.study.run import Run
from dynamics.train.checkpoint import load_array, save_params
from dynamics.tree import named_leaves

CONFIG = CONFIGS["llama2_grouped"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", ["import", "export"])
def test_commands_have_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main(["model", command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  dynamics model {command}" in out
    assert "--json" in out


def test_import_info_and_export_from_the_command_line(capsys, tmp_path):
    source = write_toy(tmp_path / "hf", CONFIG | {"vocab_size": 390}, weights(CONFIG | {"vocab_size": 390}))
    train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390).save(source / "tokenizer.model")
    command = ("model", "import", source, tmp_path / "model", "--template", "chatml", "--vocab-multiple", 64)
    code, out, _ = run(capsys, *command, "--max-shard-size", "100KB")
    assert code == 0
    assert "21 tensors, 176.8 kB, float32, 3 files of weights" in out
    assert "the mean of the old: 58" in out

    code, out, _ = run(capsys, "model", "info", tmp_path / "model", "--verify", "--json")
    described = json.loads(out)
    assert (described["vocab_size"], described["verified"], described["tokenizer"]) == (448, 21, "tokenizer.model")
    code, out, _ = run(capsys, "model", "info", tmp_path / "model")
    assert "num_kv_heads     2\n" in out

    code, out, _ = run(capsys, "model", "export", tmp_path / "model", tmp_path / "out", "--dtype", "float16", "--json")
    done = json.loads(out)
    assert (code, done["num_verified"], done["config"]["param_dtype"]) == (0, 21, "float16")
    assert {array.dtype for array in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        np.dtype("float16")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "nowhere"), "no size, folder or file is named 'nowhere'"),
        (("info", "7b", "--verify"), "--verify compares the tensors of a folder"),
        (("info", "hf", "--vocab", 9), "--vocab is for named sizes"),
        (("info", "hf", "--verify"), "no dynamics.json, so no digests to verify"),
        (("import", "hf", "new", "--template", "chatm"), "did you mean 'chatml'"),
        (("import", "hf", "new", "--template", "doit"), "has no tokenizer; put its"),
        (("import", "hf", "new", "--max-shard-size", "5 apples"), "--max-shard-size 5 apples: give a number"),
        (("import", "hf", "hf"), "is there already"),
        (("import", "pickled", "new"), "reading a pickle runs any code"),
        (("export", "nowhere", "new"), "no folder with config.json"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "hf", CONFIG)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"never read")
    code, out, err = run(capsys, "model", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "pickled"]


def test_one_array_of_a_checkpoint_is_read_and_verified_alone(tmp_path):
    save_params(tmp_path / "parameters", model(), config="any")
    for name, leaf in named_leaves(model()).items():
        np.testing.assert_array_equal(load_array(tmp_path / "parameters", name), leaf)
    with pytest.raises(UserError, match="has no array blocks/wide; it has blocks/attention_norm"):
        load_array(tmp_path / "parameters", "blocks/wide")


def test_a_finished_run_is_exported_with_its_tokenizer(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path / "cache"))
    tokenizer = train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390)
    tokenizer.save(tmp_path / "t.model")
    folder = write_toy(tmp_path / "hf", CONFIG | {"vocab_size": 448})
    whole = load_model(folder)
    described = Run(source=Practice(), size=read_config(folder), tokenizer=str(tmp_path / "t.model"))
    cell = tmp_path / "cell"
    write_json(cell / "run.json", {"run": to_plain(described), "tokenizer": tokenizer.fingerprint})
    save_params(cell / "parameters", whole, config="any")

    code, out, _ = run(capsys, "model", "export", cell, tmp_path / "out", "--json")
    assert (code, json.loads(out)["config"]["vocab_size"]) == (0, 448)
    for name, leaf in named_leaves(load_model(tmp_path / "out")).items():
        np.testing.assert_array_equal(leaf, named_leaves(whole)[name])
    assert Tokenizer.load(tokenizer_path(tmp_path / "out")) == tokenizer

    save_params(cell / "parameters", model(), config="any")  # another model
    code, _, err = run(capsys, "model", "export", cell, tmp_path / "again")
    assert code == 2
    assert "does not hold the model of its run.json: blocks/down has the shape [2, 32, 32], not [2, 48, 32]" in err
