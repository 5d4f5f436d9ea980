"""What does not fit is refused with its name, its file, what is there and what should be; nothing is left behind."""

import dataclasses
import json
import re
import struct

import numpy as np
import pytest
from parity.toys import CONFIGS, weights, write_toy

from dynamics.data.tokenizer import train_tokenizer
from dynamics.errors import UserError
from dynamics.model.convert import (
    Params,
    check_length,
    export_model,
    import_model,
    load_model,
    read_config,
    tokenizer_path,
    verify,
)

CONFIG = CONFIGS["llama2_grouped"]
QUERY, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
INDEX = "model.safetensors.index.json"


def refused(folder, tmp_path, *words):
    """Both ways in refuse the folder with these words, and the import leaves nothing behind."""
    for attempt in (lambda: load_model(folder), lambda: import_model(folder, tmp_path / "model")):
        with pytest.raises(UserError) as error:
            attempt()
        for word in words:
            assert word in str(error.value), str(error.value)
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]


@pytest.fixture
def folder(tmp_path):
    return write_toy(tmp_path / "hf", CONFIG, num_files=2)


def test_a_wrong_shape_names_the_tensor_its_file_and_both_shapes(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG, weights(CONFIG) | {QUERY: np.zeros((32, 31), np.float32)})
    refused(folder, tmp_path, QUERY, "float32[32, 31]", "hf/model.safetensors", "[32, 32]")


def test_missing_tensors_are_counted_and_named(tmp_path):
    arrays = weights(CONFIG)
    del arrays[QUERY], arrays[NORM]
    folder = write_toy(tmp_path / "hf", CONFIG, arrays)
    refused(folder, tmp_path, "lacks 2 of the 21 tensors", f"{QUERY} [32, 32]", f"{NORM} [32]")


def test_a_missing_head_says_what_config_json_says(tmp_path):
    arrays = weights(CONFIG)
    del arrays["lm_head.weight"]
    refused(write_toy(tmp_path / "hf", CONFIG, arrays), tmp_path, "lm_head.weight", "tie_word_embeddings is false")


def test_a_tied_model_with_another_head_is_refused(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    refused(write_toy(tmp_path / "hf", config, weights(CONFIG)), tmp_path, "tie_word_embeddings is true", "lm_head")


def test_tensors_of_another_architecture_are_named(tmp_path):
    bias = "model.layers.1.self_attn.q_proj.bias"
    folder = write_toy(tmp_path / "hf", CONFIG, weights(CONFIG) | {bias: np.zeros(32, np.float32)})
    refused(folder, tmp_path, "1 tensors that a model of its config.json does not have", bias, "float32[32]")


def test_numbers_that_are_no_weights_are_refused(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG, weights(CONFIG) | {NORM: np.ones(32, np.int8)})
    refused(folder, tmp_path, NORM, "int8[32]", "float16, bfloat16, float32")


@pytest.mark.parametrize("num_bytes", [4, 100, 40_000])
def test_a_file_that_is_cut_short(num_bytes, tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:num_bytes])
    words = ("is cut short: tensor", "the file has 40,000") if num_bytes > 4000 else ("not a whole safetensors file",)
    refused(folder, tmp_path, "hf/model.safetensors", "copy it again", *words)


def test_a_file_with_bytes_left_over(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"12345")
    refused(folder, tmp_path, "5 bytes after its last tensor")


def header(entries):
    text = json.dumps(entries) if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("{no json", "header that cannot be read"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "header that cannot be read"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "header that cannot be read"),
        ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, "tensor a in .* has type F4"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, r"a in .*\[2\].* takes bytes 0 to 8.* 0 to 4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "takes bytes 0 to 4.* says 4 to 8"),
    ],
)
def test_headers_that_cannot_be_right(entries, words, tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    (folder / "model.safetensors").write_bytes(header(entries) + bytes(8))
    with pytest.raises(UserError, match=words):
        load_model(folder)


def changed_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_that_names_a_file_that_is_not_there(folder, tmp_path):
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, tmp_path, INDEX, "model-00002-of-00002.safetensors", "there is none")


def test_a_tensor_in_another_file_than_the_index_says(folder, tmp_path):
    there = json.loads((folder / INDEX).read_text())["weight_map"][QUERY]
    other = next(f"model-0000{n}-of-00002.safetensors" for n in (1, 2) if f"0000{n}-of" not in there)
    changed_index(folder, lambda files: files.update({QUERY: other}))
    refused(folder, tmp_path, f"{QUERY} lies in {other}", f"float32[32, 32] in {folder / there}")


def test_a_tensor_that_the_index_does_not_know(folder, tmp_path):
    changed_index(folder, lambda files: files.pop(QUERY))
    refused(folder, tmp_path, f"tensor {QUERY}", f"is not in {INDEX}")


def test_a_tensor_that_no_file_holds(folder, tmp_path):
    changed_index(folder, lambda files: files.update({"new": "model-00001-of-00002.safetensors"}))
    refused(folder, tmp_path, "new lies in model-00001-of-00002.safetensors, which does not hold it")


def test_a_tensor_that_stands_in_two_files(folder, tmp_path):
    changed_index(folder, lambda files: files.update({"copied": "model-00003.safetensors"}))
    (folder / "model-00003.safetensors").write_bytes((folder / "model-00002-of-00002.safetensors").read_bytes())
    refused(folder, tmp_path, "stands twice", "model-00002-of-00002.safetensors", "model-00003.safetensors")


def test_an_index_that_leads_out_of_its_folder(folder, tmp_path):
    changed_index(folder, lambda files: files.update({QUERY: "../model.safetensors"}))
    refused(folder, tmp_path, "outside its folder")


def test_an_index_that_is_none(folder, tmp_path):
    (folder / INDEX).write_text("{}")
    refused(folder, tmp_path, f"{INDEX} is no index")


def test_files_without_their_index(folder, tmp_path):
    (folder / INDEX).unlink()
    refused(folder, tmp_path, "model-00001-of-00002.safetensors", f"no {INDEX}")


def test_a_single_file_beside_an_index(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, tmp_path, f"both model.safetensors and {INDEX}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_way_out(file, tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    (folder / "model.safetensors").rename(folder / file)
    refused(folder, tmp_path, file, "reading a pickle runs any code", "safe_serialization=True")
    with pytest.raises(UserError, match="reading a pickle runs any code"):
        import_model(folder / file, tmp_path / "model")


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'.*known: llama, mistral"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
        ({"mlp_bias": True}, "mlp_bias is True; only False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_scaling: rope_type is 'yarn'; known: default, lin",
        ),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters: rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is None; it must be a number > 0"),
        ({"rope_theta": 0}, "rope_theta is 0; it must be a number > 0"),
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number >= 1"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            "hidden_size 32 is not a multiple of num_attention_heads",
        ),
        ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"torch_dtype": "float8"}, "dtype is 'float8'; known: float32"),
    ],
)
def test_config_fields_that_are_not_computed_here_are_named(change, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(UserError, match=words):
        read_config(tmp_path)


def test_a_config_that_is_not_there_or_no_json(tmp_path):
    with pytest.raises(UserError, match=r"no .*config\.json; give a folder"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"no folder with config\.json and no \.gguf file"):
        import_model(tmp_path / "other", tmp_path / "model")


def test_absent_types_are_those_of_the_tensors_and_absent_counts_those_of_transformers(tmp_path):
    config = {key: value for key, value in CONFIGS["llama3_bfloat16"].items() if "dtype" not in key}
    assert (
        read_config(write_toy(tmp_path / "hf", config, weights(CONFIGS["llama3_bfloat16"]))).param_dtype == "bfloat16"
    )
    sparse = {key: CONFIG[key] for key in CONFIG if key not in ("num_key_value_heads", "rms_norm_eps", "rope_theta")}
    (tmp_path / "config.json").write_text(json.dumps(sparse))
    found = read_config(tmp_path)
    assert (found.num_kv_heads, found.rms_eps, found.rope_theta, found.head_dim) == (4, 1e-6, 10_000.0, 8)


def test_a_sliding_window_is_told_and_refused_where_it_would_matter(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIGS["mistral"] | {"sliding_window": 4096})
    check_length(folder, 4096)
    with pytest.raises(UserError, match=r"sliding_window is 4096 .* rows have 4097 tokens"):
        check_length(folder, 4097)
    assert import_model(folder, tmp_path / "model").sliding_window == 4096
    check_length(write_toy(tmp_path / "other", CONFIGS["mistral"]), 10**6)


def test_a_model_of_another_shape_is_refused_with_both_values(tmp_path):
    folder = write_toy(tmp_path / "hf", CONFIG)
    config = read_config(folder)
    for change, words in (
        ({"d_ff": 64, "rms_eps": 1e-6}, "d_ff 48 and 64; rms_eps 1e-05 and 1e-06"),
        ({"vocab_size": 63}, "vocab_size 64 and 63"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            load_model(folder, dataclasses.replace(config, **change))


def damage(folder, name):
    """Turn one bit of the tensor's first byte."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    data[8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_one_turned_bit_is_found_by_verify_and_by_an_export(dtype, tmp_path):
    import_model(write_toy(tmp_path / "hf", CONFIG), tmp_path / "model")
    assert verify(tmp_path / "model") == 21
    damage(tmp_path / "model", QUERY)
    with pytest.raises(UserError, match=f"tensor {QUERY} does not match its digest; copy"):
        verify(tmp_path / "model")
    with pytest.raises(UserError, match=f"tensor {QUERY} does not match its digest"):
        export_model(tmp_path / "model", tmp_path / "out", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "model"]


def test_a_config_that_does_not_belong_to_its_dynamics_json(tmp_path):
    import_model(write_toy(tmp_path / "hf", CONFIG), tmp_path / "model")
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(described | {"rope_theta": 5e5}))
    with pytest.raises(UserError, match=r"rope_theta is 500000.0 in config.json and 10000.0 in dynamics.json"):
        load_model(tmp_path / "model")


def test_a_folder_without_digests_cannot_be_verified(tmp_path):
    with pytest.raises(UserError, match=r"no dynamics\.json, so no digests"):
        verify(write_toy(tmp_path / "hf", CONFIG))


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    source = write_toy(tmp_path / "hf", CONFIG)
    with pytest.raises(UserError, match="is there already and not an empty folder"):
        import_model(source, source)
    (tmp_path / "empty").mkdir()
    import_model(source, tmp_path / "empty")
    assert verify(tmp_path / "empty") == 21


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(tmp_path):
    model = load_model(write_toy(tmp_path / "hf", CONFIG))
    tokenizer = train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390)
    with pytest.raises(UserError, match="has 64 rows, too few for a tokenizer of 390 ids"):
        export_model(Params.of(model, tokenizer, max_length=64), tmp_path / "out")


def test_settings_of_an_import_that_make_no_sense(tmp_path):
    source = write_toy(tmp_path / "hf", CONFIG)
    for settings, words in (
        ({"dtype": "int8"}, "dtype is 'int8'; known: float32"),
        ({"vocab_multiple": 0}, "multiple of 0"),
        ({"max_shard": 0}, "at most 0 bytes"),
    ):
        with pytest.raises(UserError, match=words):
            import_model(source, tmp_path / "model", **settings)
    with pytest.raises(UserError, match=r"has no tokenizer; put its tokenizer"):
        tokenizer_path(source)
