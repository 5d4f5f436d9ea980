"""Toy models of every kind that is read: a config.json, weights drawn by numpy from a seed, and tokens.

Shared by the script that makes the golden files, the test that reads them, the live tests and those of conversion.
Needs neither torch nor our own package.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

LENGTH = 32  # tokens; beyond the original context of the scaled models, so that scaling shows

_BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
_LLAMA1 = {key: value for key, value in _BASE.items() if key not in ("num_key_value_heads", "rope_theta")}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama1": _LLAMA1 | {"rms_norm_eps": 1e-6},
    "llama2_grouped": _BASE | {"num_key_value_heads": 2},
    "llama2_linear": _BASE | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "one_kv_head_wide": _BASE | {"num_key_value_heads": 1, "head_dim": 16},
    "llama3_tied": _BASE
    | {"num_key_value_heads": 2, "rope_theta": 500_000.0, "rope_scaling": _LLAMA3, "tie_word_embeddings": True},
    "mistral": _BASE | _MISTRAL | {"num_key_value_heads": 2, "sliding_window": None, "rope_theta": 1e6},
    "llama3_bfloat16": _BASE
    | {
        "num_key_value_heads": 2,
        "rope_parameters": {**_LLAMA3, "rope_theta": 500_000.0},
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    },
    "tied_bfloat16": _BASE | {"tie_word_embeddings": True, "torch_dtype": "bfloat16", "num_hidden_layers": 3},
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that transformers expects."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    channels = config.get("head_dim") or d // heads
    wide, narrow = heads * channels, config.get("num_key_value_heads", heads) * channels
    found = {"model.embed_tokens.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (
            ("self_attn.q_proj", (wide, d)), ("self_attn.k_proj", (narrow, d)), ("self_attn.v_proj", (narrow, d)),
            ("self_attn.o_proj", (d, wide)), ("mlp.gate_proj", (f, d)), ("mlp.up_proj", (f, d)),
            ("mlp.down_proj", (d, f)), ("input_layernorm", (d,)), ("post_attention_layernorm", (d,)),
        ):  # fmt: skip
            found[f"model.layers.{layer}.{name}.weight"] = shape
    found["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (v, d)
    return found


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights large enough that attention is far from even; each depends on the seed and its own name only."""
    dtype = np.dtype(getattr(ml_dtypes, config["torch_dtype"], None) or config["torch_dtype"])

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        numbers = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if len(shape) == 1:
            return 1 + 0.3 * numbers
        return numbers * (1.5 / math.sqrt(shape[1]))

    return {name: draw(name, shape).astype(dtype) for name, shape in shapes(config).items()}


def tokens(config: dict[str, Any]) -> np.ndarray:
    """[rows, length]"""
    return np.random.default_rng(7).integers(0, config["vocab_size"], (2, LENGTH)).astype(np.int32)


def write_toy(
    folder: Path, config: dict[str, Any], arrays: dict[str, np.ndarray] | None = None, *, num_files: int = 1
) -> Path:
    """A folder as transformers writes one; the files by safetensors' own writer, not by ours."""
    arrays = weights(config) if arrays is None else arrays
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_files == 1:
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: arrays[name] for name in list(arrays)[number::num_files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
