"""GGUF files written with the package's own writer come back as what went in; what is wrong is named."""

import json
import math
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest
from data.small_tokenizers import files, small
from gguf import GGMLQuantizationType as Kind
from parity.ours import FLOAT32, distance, logits
from parity.toys import CONFIGS, tokens, weights, write_toy

from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.model.convert import import_model
from dynamics.model.gguf import read_gguf

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
SIZE = {"intermediate_size": 64, "vocab_size": 512}  # rows of whole blocks of 32, and the small tokenizers fit
TOY = CONFIGS["llama2_grouped"] | SIZE
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = CONFIGS["llama3_tied"] | SIZE | {"rope_scaling": SCALED | {"original_max_position_embeddings": 8192}}
LINEAR = CONFIGS["llama2_linear"] | SIZE
FILE = "sentencepiece"


def name_of(theirs: str) -> str:
    """'model.layers.0.mlp.up_proj.weight' -> 'blk.0.ffn_up.weight'"""
    name = theirs.removesuffix(".weight")
    if name.startswith("model.layers."):
        layer, name = name.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[name]}.weight"
    return f"{NAMES[name]}.weight"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter lays out queries and keys: row 2i and 2i + 1 of a head are rotated together."""
    parts = []
    for head in np.split(rows, heads):
        half = len(head) // 2
        parts += [head[index // 2 + (index % 2) * half] for index in range(len(head))]
    return np.stack(parts)


def tokenizer_fields(writer: gguf.GGUFWriter, kind: str, split: str) -> None:
    if kind == "sentencepiece":
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(files()[kind])
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece.piece for piece in proto.pieces])
        writer.add_token_scores([piece.score for piece in proto.pieces])
        writer.add_token_types([piece.type for piece in proto.pieces])
    else:
        document = json.loads(files()[kind])
        vocab = document["model"]["vocab"]
        special = {token["id"] for token in document["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
        writer.add_token_types([3 if id in special else 1 for id in range(len(vocab))])
        writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
        writer.add_chat_template("{{ messages }}")
    for role, id in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{role}_token_id")(id)


def divisors(config: dict) -> np.ndarray | None:
    """Llama 3's rule as llama.cpp's converter computes it: by wavelengths."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    found, channels = [], config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for index in range(0, channels, 2):
        wave = 2 * math.pi * config["rope_theta"] ** (index / channels)
        turns = scaling["original_max_position_embeddings"] / wave
        smooth = (turns - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
        smooth = min(1.0, max(0.0, smooth))
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, np.float32)


def write(path, config=TOY, *, kind=Kind.F32, tokenizer=FILE, split="smollm", fields=(), left_out=(), tensors=()):
    """A GGUF file of the toy's weights; `fields` are added last, and `left_out` are names of tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if (config.get("rope_scaling") or {}).get("type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    tokenizer_fields(writer, tokenizer, split)
    for name, value, value_kind in fields:
        writer.add_key_value(name, value, value_kind)
    if (found := divisors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", found)
    for name, array in [*weights(config).items(), *tensors]:
        if name in left_out:
            continue
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        count = heads.get(name.split(".")[-2])
        array = array if count is None else interleaved(array, count)
        if array.ndim == 1 or kind == Kind.F32:
            writer.add_tensor(name_of(name) if name.endswith(".weight") else name, array)
        else:
            writer.add_tensor(name_of(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
def test_tensors_come_back_under_their_names_in_the_order_of_halves(kind, tmp_path):
    found, expected = read_gguf(write(tmp_path / "toy.gguf", kind=kind)), weights(TOY)
    assert found.tensors.keys() == expected.keys()
    half = {Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16}.get(kind)
    for name, array in expected.items():
        lazy = found.tensors[name]
        stored = array
        if array.ndim > 1 and kind != Kind.F32:
            stored = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        assert lazy.shape == array.shape
        assert np.asarray(lazy).dtype == lazy.dtype == (half if half and array.ndim > 1 else np.float32)
        np.testing.assert_array_equal(np.asarray(lazy).astype(np.float32), stored, err_msg=name)
    assert found.config["torch_dtype"] == (np.dtype(half).name if half else "float32")


@pytest.mark.parametrize("config", [TOY, LLAMA3, LINEAR], ids=["grouped", "llama3 tied", "linear"])
def test_an_imported_model_has_the_logits_of_the_original(config, tmp_path):
    import_model(write(tmp_path / "toy.gguf", config), tmp_path / "model")
    write_toy(tmp_path / "original", config)
    ours, expected = (
        logits(tmp_path / folder, tokens(config), compute_dtype="float32") for folder in ("model", "original")
    )
    assert distance(ours, expected) < FLOAT32


def test_configuration_and_ends_are_those_of_the_file(tmp_path):
    found = read_gguf(write(tmp_path / "toy.gguf", LLAMA3, tokenizer="bytes"))
    for name in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "vocab_size"):
        assert found.config[name] == LLAMA3[name], name
    assert found.config["tie_word_embeddings"] is True
    assert found.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert found.tokenizer_config["eos_token"] == "<|im_end|>"
    assert found.tokenizer_config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_the_tokenizer_gives_the_ids_of_the_original(kind, tmp_path):
    found = read_gguf(write(tmp_path / "toy.gguf", tokenizer=kind))
    ours = Tokenizer.from_bytes(found.tokenizer_json or found.tokenizer_model)
    original = small(kind, ("<pad>", "<user>", "<assistant>", "<eot>"))
    assert (found.tokenizer_json is None) == (kind == "sentencepiece")
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, 2, 0)
    assert ours.specials == original.specials
    for text in ("The answer is A", "  12 + 345\n\n\tx", "你好，世界！", "don't we'LL", "<|im_end|></s>", "", " "):
        assert ours.encode(text) == original.encode(text)
        assert ours.encode(text, starts_word=False) == original.encode(text, starts_word=False)


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        # As llama.cpp splits; pieces cannot be longer than these parts.
        ("smollm", "a  1234 we'll", ["a", "  ", "1", "2", "3", "4", " we", "'ll"]),
        ("llama-bpe", "a  1234 we'LL", ["a", " ", " ", "123", "4", " we", "'LL"]),
        ("gpt-2", "a  1234 we'LL", ["a", " ", " 1234", " we", "'", "LL"]),
        ("default", "a  1234 x.y", ["a", " ", " ", "123", "4", " x", ".", "y"]),
    ],
)
def test_text_is_split_by_the_rule_that_the_file_names(split, text, parts, tmp_path):
    import tokenizers

    found = read_gguf(write(tmp_path / "toy.gguf", tokenizer="bytes", split=split))
    rule = tokenizers.Tokenizer.from_str(found.tokenizer_json.decode()).pre_tokenizer
    assert [text[start:stop] for _, (start, stop) in rule.pre_tokenize_str(text)] == parts


STRING, UINT = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": [("llama.expert_count", 8, UINT)]}, r"llama\.expert_count is 8; only models without experts"),
        ({"fields": [("llama.rope.dimension_count", 4, UINT)]}, "dimension_count is 4 but heads have 8 channels"),
        ({"fields": [("llama.rope.scaling.type", "yarn", STRING)]}, r"rope\.scaling\.type is 'yarn'; known: none"),
        ({"tokenizer": "bytes", "split": "viking"}, r"tokenizer\.ggml\.pre is 'viking', .* known: gpt-2, smollm"),
        ({"left_out": ["model.embed_tokens.weight"]}, r"token_embd\.weight is missing"),
        ({"tensors": [("blk.0.attn_q.bias", np.ones(32, np.float32))]}, r"blk\.0\.attn_q\.bias is no part of LLaMA"),
        ({"tensors": [("blk.0.ssm_a", np.ones(32, np.float32))]}, r"blk\.0\.ssm_a is no part of LLaMA"),
        ({"fields": [("tokenizer.ggml.eot_token_id", 512, UINT)]}, r"eot_token_id is 512; there are 512 ids"),
        ({"config": TOY | {"vocab_size": 100}}, "holds 512 tokens but token_embd.weight has only 100 rows"),
        (
            {"config": LLAMA3 | {"rope_scaling": SCALED | {"original_max_position_embeddings": 64}}},
            "up to 8, do not follow Llama 3's rule",
        ),
    ],
)
def test_what_is_not_understood_is_named(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_gguf(write(tmp_path / "toy.gguf", **changes))


def altered(path, old: bytes, new: bytes):
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))
    return path


def test_another_architecture_and_an_unknown_quantisation_are_refused(tmp_path):
    path = altered(write(tmp_path / "a.gguf"), b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gpt2x")
    with pytest.raises(UserError, match=r"general\.architecture is 'gpt2x'; only 'llama'"):
        read_gguf(path)
    # The type of a tensor follows its dimensions: 32 and 512 for the table.
    shape = b"token_embd.weight" + (2).to_bytes(4, "little") + (32).to_bytes(8, "little") + (512).to_bytes(8, "little")
    path = altered(write(tmp_path / "b.gguf"), shape + bytes(4), shape + (999).to_bytes(4, "little"))
    with pytest.raises(UserError, match=r"quantisation type 999, which the package gguf .* cannot dequantise"):
        read_gguf(path)
    path = altered(write(tmp_path / "c.gguf"), shape + bytes(4), shape + int(Kind.I32).to_bytes(4, "little"))
    with pytest.raises(UserError, match=r"token_embd\.weight has quantisation I32"):
        read_gguf(path)


def test_a_file_that_is_cut_anywhere_or_is_none_is_refused(tmp_path):
    data = write(tmp_path / "whole.gguf").read_bytes()
    for length in (5, 20, 100, 500, *range(3000, len(data), len(data) // 15), len(data) - 40):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(UserError, match=f"cut.*{length} bytes are there"):
            read_gguf(tmp_path / "cut.gguf")
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UserError, match=r"is no GGUF file: it begins with b'PK"):
        read_gguf(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"no GGUF file .*nowhere\.gguf"):
        read_gguf(tmp_path / "nowhere.gguf")


def test_without_the_package_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'dynamics\[gguf\]'"):
        read_gguf(tmp_path / "x.gguf")
