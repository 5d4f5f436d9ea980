"""GGUF files, in which llama.cpp keeps models: configuration, tensors and tokenizer, in Hugging Face's terms.

The only file that knows the package `gguf`. Weights are dequantised one tensor at a time. llama.cpp interleaves the
rotary pairs of queries and keys, so their rows are put back in the order of halves that Hugging Face's and our models
have; and it keeps no tokenizer.json, so one is made of the pieces and the name of the rule that splits text.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dynamics.data.json_tokenizer import byte_level_json
from dynamics.data.sentencepiece_tokenizer import model_of_pieces
from dynamics.errors import UserError
from dynamics.model.llama import Llama3Scaling

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE = "rope_freqs.weight"  # divisors of the rotary frequencies: Llama 3's scaling as llama.cpp writes it down
_HALVES = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# llama.cpp's names for ways to split text, and ours.
_SPLITS = {"gpt-2": "gpt-2", "smollm": "smollm", "default": "default"} | dict.fromkeys(
    ("llama3", "llama-v3", "llama-bpe"), "llama-bpe"
)
_CONTROL, _USER_DEFINED = 3, 4  # kinds of pieces, counted as in SentencePiece


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyTensor:
    """A tensor of a GGUF file in Hugging Face's layout; `np.asarray` reads and dequantises it, each time anew."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read().astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class GGUF:
    """What a GGUF file holds, in the form of a Hugging Face folder.

    Exactly one of `tokenizer_json` and `tokenizer_model` is given. `tokenizer_config` notes the chat template.
    """

    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    tokenizer_json: bytes | None
    tokenizer_model: bytes | None
    tokenizer_config: dict[str, Any]
    generation_config: dict[str, Any]


def read_gguf(path: str | Path) -> GGUF:
    """A GGUF file of a LLaMA (or Mistral) model; nothing but its metadata is read yet.

    Raises UserError where the file is cut or no GGUF, or holds another architecture, an unknown quantisation, a tensor
    that LLaMA does not have, or a way to split text that is not known here.
    """
    file = _File(Path(path))
    tensors = {tensor.name: tensor for tensor in file.tensors}
    config = _config(file, tensors)
    pieces: list[str] = file.field("tokenizer.ggml.tokens", list)
    if len(pieces) > config["vocab_size"]:
        raise UserError(
            f"{path}: tokenizer.ggml.tokens holds {len(pieces)} tokens but token_embd.weight has only "
            f"{config['vocab_size']} rows; the file is not consistent, download it again"
        )
    ids = _special_ids(file, len(pieces))
    tokenizer_json, tokenizer_model = _tokenizer(file, pieces, ids)
    ends = [ids[role] for role in ("eos", "eot") if role in ids]
    generation = {f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids}
    generation |= {"eos_token_id": ends if len(set(ends)) > 1 else ends[0]} if ends else {}
    return GGUF(
        config=config | generation,
        tensors=_tensors(file, tensors, config),
        tokenizer_json=tokenizer_json,
        tokenizer_model=tokenizer_model,
        tokenizer_config=_tokenizer_config(file, pieces, ids, config["max_position_embeddings"]),
        generation_config=generation,
    )


class _File:
    """The package's reader with errors that name file, field and value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._package = _package()
        if not path.is_file():
            raise UserError(f"no GGUF file {path}; give the path of a file that ends in .gguf")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise UserError(f"{path} is no GGUF file: it begins with {magic!r}, not with b'GGUF'; give another file")
        try:
            self._reader = self._package.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
            if "GGMLQuantizationType" in str(error):
                number = re.findall(r"\d+", str(error))[-1]  # "np.uint32(999) is not a valid GGMLQuantizationType"
                raise self._unknown_quantisation(f"a tensor has quantisation type {number}") from error
            raise UserError(
                f"{path} cannot be read as GGUF ({error}): it may be cut, {path.stat().st_size} bytes are there, or of "
                f"a version that the package gguf {_version()} does not know; download it again or update gguf"
            ) from error
        self.tensors: list[Any] = self._reader.tensors
        for kind, tensor in {tensor.tensor_type: tensor for tensor in self.tensors}.items():
            try:  # one row tells whether the kind can be dequantised at all
                self.values(tensor, rows=1)
            except NotImplementedError as error:
                raise self._unknown_quantisation(f"tensor {tensor.name} has quantisation {kind.name}") from error

    def values(self, tensor: Any, rows: int | None = None) -> np.ndarray:
        """The numbers of a tensor, float16 as they are and all others as float32."""
        if tensor.tensor_type.name == "F16":
            return np.asarray(tensor.data[:rows])
        return self._package.quants.dequantize(tensor.data[:rows], tensor.tensor_type)

    def field(self, name: str, kind: type, *default: Any) -> Any:
        """The value of a metadata field, which must be of the kind given; without a default it must be there."""
        found = self._reader.get_field(name)
        if found is None:
            if default:
                return default[0]
            raise UserError(f"{self.path}: field {name} is missing, which every such model has; download it again")
        value = found.contents()
        if kind is float and isinstance(value, int | float):
            return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
        if not isinstance(value, kind):
            raise UserError(f"{self.path}: field {name} is {value!r}, not {kind.__name__}; download it again")
        return value

    def _unknown_quantisation(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: {what}, which the package gguf {_version()} cannot dequantise; "
            "update gguf, or take a file in F16, BF16, Q8_0, Q4_K or another common kind"
        )


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError("reading a GGUF file needs the package gguf; run: pip install 'dynamics[gguf]'") from error
    return gguf


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _config(file: _File, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json."""
    architecture = file.field("general.architecture", str)
    if architecture != "llama":
        raise UserError(
            f"{file.path}: general.architecture is {architecture!r}; only 'llama' (LLaMA and Mistral) is read"
        )
    if experts := file.field("llama.expert_count", int, 0):
        raise UserError(f"{file.path}: llama.expert_count is {experts}; only models without experts are read")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{file.path}: tensor token_embd.weight is missing; download the file again")
    width, rows = (int(n) for n in tensors["token_embd.weight"].shape)  # GGUF counts dimensions from the last
    heads = file.field("llama.attention.head_count", int)
    head_dim = file.field("llama.attention.key_length", int, width // heads)
    rotated = file.field("llama.rope.dimension_count", int, head_dim)
    if rotated != head_dim:
        raise UserError(
            f"{file.path}: llama.rope.dimension_count is {rotated} but heads have {head_dim} channels; "
            "only models that rotate all channels are read"
        )
    theta = file.field("llama.rope.freq_base", float, 10_000.0)
    matrices = {t.tensor_type.name for t in tensors.values() if len(t.shape) > 1}
    kind = matrices.pop() if len(matrices) == 1 else "mixed"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": file.field("llama.feed_forward_length", int),
        "num_hidden_layers": file.field("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.field("llama.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": file.field("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, tensors, theta, head_dim),
        "max_position_embeddings": file.field("llama.context_length", int),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _HALVES[kind].name if kind in _HALVES else "float32",
    }


def _rope_scaling(file: _File, tensors: Mapping[str, Any], theta: float, head_dim: int) -> dict[str, Any] | None:
    """The `rope_scaling` of a config.json, or None."""
    kind = file.field("llama.rope.scaling.type", str, "none")
    if _ROPE in tensors:
        return _llama3_scaling(file, file.values(tensors[_ROPE]), theta, head_dim)
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(f"{file.path}: llama.rope.scaling.type is {kind!r}; known: none, linear, and Llama 3's")
    return {"rope_type": "linear", "factor": file.field("llama.rope.scaling.factor", float)}


def _llama3_scaling(file: _File, divisors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's rule again, of which the file keeps only the result; the rule is tried and must give that result."""
    rule = Llama3Scaling(factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if not np.allclose(frequencies / rule(frequencies), divisors, rtol=1e-3):
        raise UserError(
            f"{file.path}: the divisors in {_ROPE}, up to {divisors.max():g}, do not follow Llama 3's rule "
            "(low_freq_factor 1, high_freq_factor 4, original length 8192); import the model from safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": rule.factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_length,
    }


def _tensors(file: _File, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """All tensors under Hugging Face's names."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name == _ROPE:
            continue
        *block, part, suffix = name.split(".")
        if suffix != "weight" or part not in _NAMES or (block and block[0] != "blk"):
            raise UserError(
                f"{file.path}: tensor {name} is no part of LLaMA; import such a model from safetensors, if at all"
            )
        layer = f"model.layers.{block[1]}." if block else ""
        # A half stays a half only in a file of halves: config.json knows one type, and float32 loses nothing.
        half = config["torch_dtype"] != "float32" and _HALVES.get(tensor.tensor_type.name)
        found[f"{layer}{_NAMES[part]}.weight"] = LazyTensor(
            shape=tuple(int(n) for n in reversed(tensor.shape)),
            dtype=half or np.dtype(np.float32),
            read=functools.partial(_read, file, tensor, heads.get(part)),
        )
    return found


def _read(file: _File, tensor: Any, heads: int | None) -> np.ndarray:
    values = file.values(tensor)
    return values if heads is None else halves_of_pairs(values, heads)


def halves_of_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix from llama.cpp's order to Hugging Face's.

    llama.cpp     0 0' 1 1' 2 2'    each channel stands beside the one that it is rotated with
    Hugging Face  0 1 2 0' 1' 2'    first all first halves
    """
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _special_ids(file: _File, num_pieces: int) -> dict[str, int]:
    """The ids that play a role, by 'bos', 'eos', 'eot', 'unk', 'pad'; only those that the file names."""
    fields = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    ids = {role: file.field(f"tokenizer.ggml.{name}_token_id", int, None) for role, name in fields.items()}
    for role, id in ids.items():
        if id is not None and not 0 <= id < num_pieces:
            raise UserError(f"{file.path}: tokenizer.ggml.{fields[role]}_token_id is {id}; there are {num_pieces} ids")
    return {role: id for role, id in ids.items() if id is not None}


def _tokenizer(file: _File, pieces: list[str], ids: Mapping[str, int]) -> tuple[bytes | None, bytes | None]:
    """(tokenizer.json, SentencePiece model), one of them None."""
    kind = file.field("tokenizer.ggml.model", str)
    kinds: list[int] = file.field("tokenizer.ggml.token_type", list, [1] * len(pieces))
    roles = {role: id for role, id in ids.items() if role in ("bos", "eos", "unk")}
    if kind == "llama":
        scores: list[float] = file.field("tokenizer.ggml.scores", list)
        leading_space = file.field("tokenizer.ggml.add_space_prefix", bool, True)
        return None, model_of_pieces(pieces, scores, kinds, roles=roles, leading_space=leading_space)
    if kind != "gpt2":
        raise UserError(f"{file.path}: tokenizer.ggml.model is {kind!r}; known: llama (SentencePiece), gpt2 (bytes)")
    split = file.field("tokenizer.ggml.pre", str, "default")
    if split not in _SPLITS:
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre is {split!r}, a way to split text that is not known here; "
            f"known: {', '.join(_SPLITS)}; import the model from safetensors with its tokenizer.json"
        )
    made = byte_level_json(
        pieces,
        file.field("tokenizer.ggml.merges", list),
        split=_SPLITS[split],
        special=_where(kinds, _CONTROL),
        added=_where(kinds, _USER_DEFINED),
        roles=roles,
    )
    return made, None


def _where(kinds: Iterable[int], kind: int) -> set[int]:
    return {index for index, found in enumerate(kinds) if found == kind}


def _tokenizer_config(file: _File, pieces: list[str], ids: Mapping[str, int], max_length: int) -> dict[str, Any]:
    """The content of a tokenizer_config.json."""
    fast = file.field("tokenizer.ggml.model", str) == "gpt2"
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": file.field("tokenizer.ggml.add_bos_token", bool, not fast),
    }
    config |= {f"{role}_token": pieces[ids[role]] for role in ("bos", "eos", "unk", "pad") if role in ids}
    if template := file.field("tokenizer.chat_template", str, ""):
        config["chat_template"] = template
    return config
