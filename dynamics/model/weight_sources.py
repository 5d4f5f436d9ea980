"""Where weights come from, all in Hugging Face's terms: a folder, a .gguf file, or parameters of ours."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynamics import tree
from dynamics.data.tokenizer import FILES, Tokenizer
from dynamics.errors import UserError
from dynamics.model import hf_config
from dynamics.model.hf_config import read_json
from dynamics.model.hf_names import Weight, check_fit, their_rows, weights_of
from dynamics.model.llama import Llama, LlamaConfig
from dynamics.model.model_folder import (
    CONFIG,
    GENERATION,
    check_same_names,
    check_tied,
    digests_of,
    is_model_folder,
    read_config,
)
from dynamics.model.safetensor_files import Tensor, open_folder, refuse_pickle

# What else belongs to a tokenizer, and is copied with it as it is.
_BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """Our own parameters as a source of `export_model`: a model in memory, or arrays read one at a time.

    Each parameter is asked for once, and let go before the next.
    """

    config: LlamaConfig
    array: Callable[[str], Any]  # such as 'blocks/query' -> [layers, d, h, c]
    tokenizer: Tokenizer | None
    max_length: int  # tokens of the longest row it was trained on
    place: str

    @staticmethod
    def of(model: Llama, tokenizer: Tokenizer | None, *, max_length: int) -> "Params":
        """The parameters of a model in memory; those of a mesh are gathered one by one."""
        leaves = tree.named_leaves(model)
        return Params(
            config=model.config, array=leaves.__getitem__, tokenizer=tokenizer, max_length=max_length, place="a model"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Whatever weights come from, in Hugging Face's terms."""

    place: str
    data: dict[str, Any]  # of config.json
    config: LlamaConfig
    tensors: dict[str, Tensor]
    digests: dict[str, str]
    files: dict[str, bytes | Path]  # the tokenizer's, by the name they get: content, or where to copy it from
    generation: dict[str, Any] | None  # of generation_config.json
    harmless: list[str]  # tensors of no use, which are not copied

    @property
    def sliding_window(self) -> int | None:
        return hf_config.sliding_window(self.data)


def open_source(given: str | Path | Params) -> Source:
    """The source with everything checked but the digests; UserError for what is no model, or not one of its shape."""
    if isinstance(given, Params):
        return _params_source(given)
    path = Path(given)
    refuse_pickle(path)
    if path.suffix == ".gguf":
        return _gguf_source(path)
    if not is_model_folder(path):
        raise UserError(f"{path} is no folder with {CONFIG} and no .gguf file; give one of them")
    return _folder_source(path)


def _folder_source(folder: Path) -> Source:
    config, tensors, digests = read_config(folder), open_folder(folder), digests_of(folder)
    if digests:
        check_same_names(folder, tensors, digests)
    harmless = check_fit(config, tensors, str(folder))
    check_tied(harmless, tensors)
    names = [name for name in (*FILES, *_BESIDE) if (folder / name).is_file()]
    generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else None
    return Source(
        place=str(folder), data=read_json(folder / CONFIG), config=config, tensors=tensors, digests=digests,
        files={name: folder / name for name in names}, generation=generation, harmless=harmless,
    )  # fmt: skip


def _gguf_source(path: Path) -> Source:
    from dynamics.model.gguf import read_gguf

    found = read_gguf(path)
    config = hf_config.from_hf(found.config, name=path.stem, place=str(path))
    tensors = {name: _lazy(name, array, str(path)) for name, array in found.tensors.items()}
    harmless = check_fit(config, tensors, str(path))
    check_tied(harmless, tensors)
    made = {"tokenizer.json": found.tokenizer_json, "tokenizer.model": found.tokenizer_model}
    files: dict[str, bytes | Path] = {name: content for name, content in made.items() if content is not None}
    files["tokenizer_config.json"] = json.dumps(found.tokenizer_config, indent=2, ensure_ascii=False).encode()
    return Source(
        place=str(path), data=dict(found.config), config=config, tensors=tensors, digests={}, files=files,
        generation=found.generation_config, harmless=harmless,
    )  # fmt: skip


def _lazy(name: str, array: Any, place: str) -> Tensor:
    """A tensor that is made whole when it is first asked for, and let go after its last row."""
    made: list[np.ndarray] = []

    def rows(start: int, stop: int) -> np.ndarray:
        if not made:
            made.append(np.asarray(array))
        part = made[0][start:stop]
        if stop >= array.shape[0]:
            made.clear()
        return part

    return Tensor(name=name, shape=tuple(array.shape), dtype=np.dtype(array.dtype), place=place, rows=rows)


def _params_source(params: Params) -> Source:
    """Tensors in the order of our parameters, not of layers: each parameter then is read once."""
    held: dict[str, np.ndarray] = {}

    def whole(name: str) -> np.ndarray:
        if name not in held:
            held.clear()
            held[name] = np.asarray(params.array(name))
        return held[name]

    def tensor(weight: Weight, layer: int, name: str) -> Tensor:
        def rows(start: int, stop: int) -> np.ndarray:
            array = whole(weight.ours)
            return their_rows(weight, array[layer] if weight.stacked else array, start, stop)

        dtype = np.dtype(params.config.param_dtype)
        return Tensor(name=name, shape=weight.their_shape, dtype=dtype, place=params.place, rows=rows)

    config, tokenizer = params.config, params.tokenizer
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{params.place} has {config.vocab_size} rows, too few for a tokenizer of {tokenizer.vocab_size} ids; give "
            "the tokenizer that it was trained with"
        )
    tensors = {
        name: tensor(weight, layer, name)
        for weight in weights_of(config)
        for layer, name in enumerate(weight.names(config))
    }
    data = {**hf_config.to_hf(config, max_length=params.max_length), **_end_ids(tokenizer)}
    return Source(
        place=params.place, data=data, config=config, tensors=tensors, digests={}, files=_saved(tokenizer),
        generation=None, harmless=[],
    )  # fmt: skip


def _end_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that begin, end and pad a text, under the names of config.json; absent where the tokenizer has none."""
    if tokenizer is None:
        return {}
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.specials.get("<pad>"),
    }
    return {name: id for name, id in ids.items() if id is not None}


def _saved(tokenizer: Tokenizer | None) -> dict[str, bytes | Path]:
    """The tokenizer's file, and the file that tells transformers which of its tokens play a part."""
    if tokenizer is None:
        return {}
    is_json = tokenizer.model.startswith(b"{")
    roles = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.unk_id,
        "pad_token": tokenizer.specials.get("<pad>"),
    }
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_json else "LlamaTokenizer",
        **{role: tokenizer.piece(id) for role, id in roles.items() if id is not None},
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json" if is_json else "tokenizer.model": tokenizer.model,
        "tokenizer_config.json": json.dumps(described, indent=2, ensure_ascii=False).encode(),
    }
