"""`config.json` as transformers writes it <-> LlamaConfig: LLaMA 1, 2, 3 and Mistral.

What the file says and this package does not compute is an error that names the field, never a model that is a little
different. Both spellings are read: `rope_theta` and `rope_scaling`, and the `rope_parameters` of transformers 5.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics.errors import UserError
from dynamics.model.llama import DTYPES, LinearScaling, Llama3Scaling, LlamaConfig, RopeScaling

MODEL_TYPES = ("llama", "mistral")
DEEP = 16  # layers from which on a program of unrolled layers takes long to compile

# What the weights mean. The other fields of LlamaConfig say how the model is computed, and may differ freely.
ARCHITECTURE = (
    "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "rope_theta",
    "rope_scaling", "rms_eps", "tied_head",
)  # fmt: skip

# Fields that change the computation, with the only value that is computed here.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; UserError when there is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {path}; give a folder that holds it, as transformers writes one") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not an object; copy it again")
    return data


def from_hf(data: Mapping[str, Any], *, name: str, place: str) -> LlamaConfig:
    """The LlamaConfig of a config.json; from 16 layers on they are scanned over. `place` names the file in messages.

    Absent fields have the values that transformers gives them. Raises UserError naming the field.
    """
    kind = data.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{place}: model_type is {kind!r} (architectures {data.get('architectures')}); known: "
            f"{', '.join(MODEL_TYPES)}; other architectures compute something else"
        )
    for field, value in _FIXED.items():
        if data.get(field, value) not in (value, None):
            raise UserError(f"{place}: {field} is {data[field]!r}; only {value!r} is computed here: use another model")
    width, heads = _count(data, "hidden_size", place), _count(data, "num_attention_heads", place)
    num_layers = _count(data, "num_hidden_layers", place)
    if data.get("head_dim") is None and width % heads:
        raise UserError(
            f"{place}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and head_dim is not given"
        )
    kv_default = 8 if kind == "mistral" else heads
    theta, scaling = _rope(data, place)
    return LlamaConfig(
        name=name,
        vocab_size=_count(data, "vocab_size", place),
        d_model=width,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=_count(data, "num_key_value_heads", place, kv_default),
        head_dim=_count(data, "head_dim", place, width // heads),
        d_ff=_count(data, "intermediate_size", place),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=_number(data, "rms_norm_eps", place, 1e-6),
        tied_head=bool(data.get("tie_word_embeddings", False)),
        param_dtype=_dtype(data, place),
        scan_layers=num_layers >= DEEP,
    )


def _count(data: Mapping[str, Any], field: str, place: str, default: int | None = None) -> int:
    value = data.get(field)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise UserError(f"{place}: {field} is {value!r}; it must be a whole number >= 1")
    return value


def _number(data: Mapping[str, Any], field: str, place: str, default: float | None = None) -> float:
    value = data.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise UserError(f"{place}: {field} is {value!r}; it must be a number > 0")
    return float(value)


def _dtype(data: Mapping[str, Any], place: str) -> str:
    given = data.get("dtype") or data.get("torch_dtype") or "float32"
    if given not in DTYPES:
        raise UserError(f"{place}: dtype is {given!r}; known: {', '.join(DTYPES)}")
    return given


def _rope(data: Mapping[str, Any], place: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling. An unknown kind of scaling is refused: with the wrong angles a model still writes text."""
    field = "rope_parameters" if data.get("rope_parameters") is not None else "rope_scaling"
    given = data.get(field) or {}
    if not isinstance(given, dict):
        raise UserError(f"{place}: {field} is {given!r}; it must be an object or null")
    theta = _number(given if "rope_theta" in given else data, "rope_theta", place, 10_000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    where = f"{place}: {field}"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=_number(given, "factor", where))
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=_number(given, "factor", where),
            low_freq_factor=_number(given, "low_freq_factor", where),
            high_freq_factor=_number(given, "high_freq_factor", where),
            original_length=_count(given, "original_max_position_embeddings", where),
        )
    raise UserError(f"{where}: rope_type is {kind!r}; known: default, linear, llama3")


def sliding_window(data: Mapping[str, Any]) -> int | None:
    """Tokens that a position sees in the model's own attention; None where it sees all.

    Attention here is never limited, so results are the model's own only up to this length.
    """
    if data.get("use_sliding_window") is False:
        return None
    return data.get("sliding_window", 4096 if data.get("model_type") == "mistral" else None)  # as transformers has it


def to_hf(config: LlamaConfig, *, max_length: int) -> dict[str, Any]:
    """The config.json of a model that had none, in the spelling that transformers 4 and 5 and llama.cpp read.

    `max_length` is the longest row the model was trained on, in tokens.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": max_length,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        "torch_dtype": config.param_dtype,
    }


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    raise UserError(f"rope scaling {type(scaling).__name__} has no name in config.json; use linear or llama3")


def changed(data: Mapping[str, Any], *, vocab_size: int, dtype: str) -> dict[str, Any]:
    """A config.json with another number of rows and type, everything else as it was."""
    spelling = "dtype" if "dtype" in data else "torch_dtype"
    return {**data, "vocab_size": vocab_size, spelling: dtype}


def generation_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json of a model that had none: the ids that begin, end and pad its texts."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"_from_model_config": True, **{name: data[name] for name in names if data.get(name) is not None}}


def differences(one: LlamaConfig, other: LlamaConfig, *, but: tuple[str, ...] = ()) -> list[str]:
    """Fields of the architecture in which two models differ, as 'd_model 64 and 48'."""
    fields = [field for field in ARCHITECTURE if field not in but and getattr(one, field) != getattr(other, field)]
    return [f"{field} {_said(getattr(one, field))} and {_said(getattr(other, field))}" for field in fields]


def _said(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(f"{key}={number}" for key, number in dataclasses.asdict(value).items())
        return f"{type(value).__name__}({fields})"
    return str(value)
