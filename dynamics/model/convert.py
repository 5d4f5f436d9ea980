"""Real weights in and out: folders of Hugging Face safetensors <-> our parameters.

Tensors pass one at a time, and a few MiB of each at once, so 65b needs no more memory than 0.2m. A model is laid out on
its mesh as it is read: each process reads its own slices only.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics import config as settings
from dynamics import tree
from dynamics.data.template import Template, tokenizer_specials
from dynamics.data.tokenizer import FILES, Tokenizer
from dynamics.errors import UserError
from dynamics.model import hf_config
from dynamics.model.hf_names import EMBEDDING, HEAD, Weight, check_fit, fill, weights_of
from dynamics.model.llama import DTYPES, Llama, LlamaConfig, abstract
from dynamics.model.model_folder import (
    CONFIG,
    GENERATION,
    NOTES,
    altered,
    check_length,
    check_tied,
    digest_of,
    ignore,
    is_model_folder,
    read_config,
    tokenizer_path,
    verify,
)
from dynamics.model.safetensor_files import OnBytes, Tensor, new_folder, open_folder, write_folder, write_json
from dynamics.model.sharding import shardings_for
from dynamics.model.table_rows import cast, grown, resized
from dynamics.model.weight_sources import Params, Source, open_source

__all__ = [
    "Params", "Written", "check_length", "export_model", "import_model", "is_model_folder", "load_model",
    "read_config", "tokenizer_path", "verify",
]  # fmt: skip

MAX_SHARD = 5 * 10**9  # bytes, as transformers has it
FORMAT = 1  # of dynamics.json


def load_model(
    folder: str | Path, config: LlamaConfig | None = None, *, mesh: jax.sharding.Mesh | None = None
) -> Llama:
    """The model of a folder, each parameter laid out on the mesh as it is read; without a mesh, on one device.

    `config` (default: `read_config`) may say otherwise how the model is computed, have another param_dtype, and more
    rows in vocab_size: new rows of embedding and head are the mean of the old. Every process of a mesh calls it and
    reads its own slices; the host holds one parameter's local part at a time. Digests are not compared: see `verify`.
    Raises UserError for any other difference, naming the field and both values.
    """
    folder = Path(folder)
    stored = read_config(folder)
    config = stored if config is None else config
    different = hf_config.differences(stored, config, but=("vocab_size",))
    if different or config.vocab_size < stored.vocab_size:
        different = different or hf_config.differences(stored, config)
        raise UserError(f"{folder} is not the model that is asked for: {'; '.join(different)}; use its own values")
    tensors = open_folder(folder)
    harmless = check_fit(stored, tensors, str(folder))
    check_tied(harmless, tensors)
    target = abstract(config)
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = dict.fromkeys(tree.named_leaves(target), device)
    else:
        shardings = tree.named_leaves(shardings_for(target, mesh))
    arrays = {
        weight.ours: _placed(
            weight,
            [resized(tensors[name], config.vocab_size) for name in weight.names(config)],
            np.dtype(config.param_dtype),
            shardings[weight.ours],
        )
        for weight in weights_of(config)
    }
    return tree.with_leaves(target, arrays)


def _placed(weight: Weight, tensors: list[Tensor], dtype: np.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
    """One parameter on the devices of its sharding; a slice that several devices share is read once."""
    shape = (len(tensors), *weight.shape) if weight.stacked else weight.shape
    slices: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: Any) -> np.ndarray:
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if bounds not in slices:
            part = np.empty([stop - start for start, stop in bounds], dtype)
            layers = range(*bounds[0]) if weight.stacked else (0,)
            inside = tuple(slice(*one) for one in (bounds[1:] if weight.stacked else bounds))
            for position, layer in enumerate(layers):
                fill(part[position] if weight.stacked else part, weight, tensors[layer], inside)
            slices[bounds] = part
        return slices[bounds]

    return jax.make_array_from_callback(shape, sharding, read)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What an import or export did."""

    folder: str
    source: str
    config: LlamaConfig
    num_tensors: int
    num_bytes: int  # of tensors
    files: tuple[str, ...]
    num_verified: int  # tensors whose digest was known beforehand, and found right
    num_new_rows: int  # of embedding and head, set to the mean of the old
    left_out: tuple[str, ...]  # tensors and files of the source that the model does not need
    sliding_window: int | None  # tokens: on longer rows the model's own attention sees less than ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Growth:
    """Rows of embedding and head: how many, and which tokens are new."""

    num_rows: int
    num_old: int  # rows of tokens that were there before
    num_named: int  # ids of the tokenizer now

    def num_new(self, num_stored: int) -> int:
        """Rows that become the mean: those past the stored ones, and those of padding that a new token takes."""
        return self.num_rows - num_stored + max(0, min(self.num_named, num_stored) - self.num_old)


def import_model(
    source: str | Path,
    folder: str | Path,
    *,
    template: Template | None = None,
    vocab_multiple: int = 1,
    dtype: str | None = None,
    max_shard: int = MAX_SHARD,
    on_bytes: OnBytes = ignore,
) -> Written:
    """Make a model folder of a Hugging Face folder, a .gguf file or another model folder.

    `template` adds those of its special tokens that the tokenizer lacks; rows of embedding and head grow to the ids
    of the tokenizer, rounded up to `vocab_multiple`; `dtype` casts every tensor. Without them each tensor is
    byte-identical. The folder appears whole or not at all. Raises UserError for whatever does not fit.
    """
    if vocab_multiple < 1:
        raise UserError(f"the vocabulary cannot be padded to a multiple of {vocab_multiple}; give a number from 1 up")
    found = open_source(source)
    with new_folder(Path(folder)) as unfinished:
        _write_tokenizer(found, unfinished)
        rows = num_old = num_named = found.config.vocab_size
        _check_tokenizer(unfinished, rows, source)
        dropped: list[str] = []
        if template is not None:
            num_before, num_named, dropped = _add_specials(unfinished, template)
            num_old = min(num_before, rows)
        num_rows = -(-max(rows, num_named) // vocab_multiple) * vocab_multiple
        growth = _Growth(num_rows=num_rows, num_old=num_old, num_named=num_named)
        done = _write(found, unfinished, growth, dtype=dtype, max_shard=max_shard, on_bytes=on_bytes)
    return dataclasses.replace(done, folder=str(folder), left_out=(*done.left_out, *dropped))


def export_model(
    source: str | Path | Params,
    folder: str | Path,
    *,
    dtype: str | None = None,
    max_shard: int = MAX_SHARD,
    on_bytes: OnBytes = ignore,
) -> Written:
    """Write a folder that transformers and llama.cpp's converter read, of a model folder or of our own parameters."""
    found = open_source(source)
    rows = found.config.vocab_size
    with new_folder(Path(folder)) as unfinished:
        _write_tokenizer(found, unfinished)
        growth = _Growth(num_rows=rows, num_old=rows, num_named=rows)
        done = _write(found, unfinished, growth, dtype=dtype, max_shard=max_shard, on_bytes=on_bytes)
    return dataclasses.replace(done, folder=str(folder))


def _write_tokenizer(found: Source, folder: Path) -> None:
    for name, content in found.files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def _check_tokenizer(folder: Path, rows: int, source: str | Path) -> None:
    """UserError where the tokenizer cannot be read or has ids that the model has no rows for."""
    if not any((folder / name).is_file() for name in FILES):
        return
    path = tokenizer_path(folder)
    try:
        num_ids = Tokenizer.load(path, specials=()).vocab_size
    except UserError as error:
        raise UserError(f"{source}: {str(error).removeprefix(f'{path}: ')} ({path.name})") from error
    if num_ids > rows:
        raise UserError(
            f"{source}: {path.name} has {num_ids:,} ids and the model {rows:,} rows: they belong to different models; "
            "put the model's own tokenizer there"
        )


def _add_specials(folder: Path, template: Template) -> tuple[int, int, list[str]]:
    """Add the template's missing specials to the folder's tokenizer; ids before and after, and files taken away.

    A folder may hold a tokenizer in two forms; the one that did not get the new tokens would disagree, so it goes.
    """
    path = tokenizer_path(folder)
    num_before = Tokenizer.load(path, specials=()).vocab_size
    tokenizer = Tokenizer.load(path, specials=tokenizer_specials(template))
    if tokenizer.vocab_size == num_before:
        return num_before, num_before, []
    tokenizer.save(path)
    others = [name for name in FILES if name != path.name and (folder / name).is_file()]
    for name in others:
        (folder / name).unlink()
    return num_before, tokenizer.vocab_size, others


def _write(
    found: Source, folder: Path, growth: _Growth, *, dtype: str | None, max_shard: int, on_bytes: OnBytes
) -> Written:
    """Everything of a model folder but its tokenizer."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; known: {', '.join(DTYPES)}")
    if max_shard < 1:
        raise UserError(f"files of at most {max_shard} bytes hold nothing; give a size such as 5GB")
    tensors = {
        name: _final(tensor, growth, dtype) for name, tensor in found.tensors.items() if name not in found.harmless
    }
    changed = [name for name, tensor in tensors.items() if tensor is not found.tensors[name] and name in found.digests]
    for name in changed:  # what is written has a digest of its own, so what is read is compared first
        _compare(found, name, digest_of(found.tensors[name]))
    described = write_folder(folder, list(tensors.values()), max_shard=max_shard, on_bytes=on_bytes)
    for name in found.digests.keys() & tensors.keys() - set(changed):
        _compare(found, name, described[name]["digest"])

    stored = found.config
    config = dataclasses.replace(stored, vocab_size=growth.num_rows, param_dtype=dtype or stored.param_dtype)
    data = hf_config.changed(found.data, vocab_size=config.vocab_size, dtype=config.param_dtype)
    write_json(folder / CONFIG, data)
    write_json(folder / GENERATION, found.generation or hf_config.generation_config(data))
    notes = {"format": FORMAT, "source": found.place, "model": settings.to_plain(config), "tensors": described}
    write_json(folder / NOTES, notes)
    return Written(
        folder=str(folder),
        source=found.place,
        config=config,
        num_tensors=len(tensors),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        files=tuple(sorted(path.name for path in folder.iterdir())),
        num_verified=len(found.digests.keys() & tensors.keys()),
        num_new_rows=growth.num_new(stored.vocab_size),
        left_out=tuple(found.harmless),
        sliding_window=found.sliding_window,
    )


def _final(tensor: Tensor, growth: _Growth, dtype: str | None) -> Tensor:
    """The tensor as it is written; the very same one where nothing is asked for."""
    if tensor.name in (EMBEDDING, HEAD):
        tensor = grown(tensor, growth.num_rows, num_old=growth.num_old, num_named=growth.num_named)
    return tensor if dtype is None else cast(tensor, np.dtype(dtype))


def _compare(found: Source, name: str, digest: str) -> None:
    if digest != found.digests[name]:
        raise altered(found.tensors[name])
