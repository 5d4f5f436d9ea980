"""Safetensors files, read and written tensor by tensor: no file and no tensor is ever whole in memory.

    8 bytes           length of the header, little-endian
    header            JSON: {name: {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}, "__metadata__": {...}}
    bytes             the tensors in C order, back to back; offsets count from here

A folder holds `model.safetensors`, or several files and `model.safetensors.index.json`, which says what lies where.
Pickled weights are refused: reading a pickle runs whatever code its author put there.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

from dynamics.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}

_BLOCK = 8 * 2**20  # bytes of a tensor in memory at once
_LONGEST_HEADER = 100 * 2**20  # bytes, the limit of the format's own library

OnBytes = Callable[[int, int], None]  # bytes done so far, and in all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A named array that is read in parts: `rows(start, stop)` gives a part of its first dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    place: str  # the file it lies in, for messages
    rows: Callable[[int, int], np.ndarray]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it, in stretches of whole rows that take a few MiB each; where they end depends on its shape alone."""
        count = self.shape[0] if self.shape else 1
        step = max(1, _BLOCK * count // max(1, self.num_bytes))
        for start in range(0, count, step):
            yield self.rows(start, min(start + step, count))

    def said(self) -> str:
        """'float32[4, 8] in model.safetensors'."""
        return f"{self.dtype}{list(self.shape)} in {self.place}"


class Digest:
    """Digest of a tensor's type, shape and bytes, fed block by block; equal exactly for bit-identical tensors."""

    def __init__(self, tensor: Tensor) -> None:
        self._state = xxhash.xxh3_128(f"{tensor.dtype}{list(tensor.shape)}".encode())

    def update(self, block: np.ndarray) -> None:
        self._state.update(_bytes(block))

    def __str__(self) -> str:
        return self._state.hexdigest()


def _bytes(block: np.ndarray) -> memoryview:
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8).data


def refuse_pickle(path: Path) -> None:
    """UserError where `path` is a pickle, or a folder whose only weights are pickles."""
    if path.is_file() and path.suffix in PICKLES:
        found = [path.name]
    elif path.is_dir() and not list(path.glob("*.safetensors")) and not (path / INDEX).exists():
        found = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    else:
        return
    if found:
        raise UserError(
            f"{path} holds pickled weights ({', '.join(found[:3])}), and reading a pickle runs any code that was put "
            "in it; convert them once where you trust the file: transformers' "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )


def open_folder(folder: Path) -> dict[str, Tensor]:
    """{name: tensor} of a folder's safetensors, nothing read yet but headers; order as they lie in the files.

    Raises UserError naming tensor and file: an index that disagrees with its files, a tensor that stands in two, a
    file that is missing, cut short, or whose header cannot be right.
    """
    refuse_pickle(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give one with config.json and {SINGLE} or {INDEX}")
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise UserError(f"{folder} has both {SINGLE} and {INDEX}; remove the one that does not belong to this model")
    if single.exists():
        return open_file(single)
    if index.exists():
        return _open_sharded(folder, _weight_map(index))
    shards = sorted(path.name for path in folder.glob("model*.safetensors"))
    if shards:
        raise UserError(f"{folder} has {', '.join(shards[:3])} but no {INDEX}; copy the index of the same model too")
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder of Hugging Face safetensors")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes(), object_pairs_hook=_without_repeats)["weight_map"]
        if not all(isinstance(file, str) for file in found.values()):
            raise ValueError("a file name is not a string")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of tensors ({error}); copy it again") from error
    for name, file in found.items():
        if Path(file).name != file:
            raise UserError(f"{index} says that {name} lies in {file!r}, outside its folder; copy the index again")
    return found


def _open_sharded(folder: Path, weight_map: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of all files of the index, each where the index says and nowhere else."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).exists():
            named = next(name for name, there in weight_map.items() if there == file)
            raise UserError(f"{folder / INDEX} names {file}, where {named} should lie, and there is none; copy it too")
        for name, tensor in open_file(folder / file).items():
            if name in tensors:
                raise UserError(
                    f"tensor {name} stands twice: {tensors[name].said()} and {tensor.said()}; "
                    "remove the file that does not belong to this model"
                )
            if name not in weight_map:
                raise UserError(f"tensor {name} ({tensor.said()}) is not in {INDEX}; copy the index of the same model")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors:
            raise UserError(f"{INDEX} says that {name} lies in {file}, which does not hold it; copy that file again")
        if Path(tensors[name].place).name != file:
            raise UserError(
                f"{INDEX} says that {name} lies in {file}, but it is {tensors[name].said()}; copy the index again"
            )
    return tensors


def open_file(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of one safetensors file, in the order of their bytes; its header and its length are checked."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise UserError(
                f"{path} is not a whole safetensors file: {size:,} bytes, and its header would take {length:,}; "
                "copy it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has a header that cannot be read ({error}); copy it again") from error
    return _checked(path, entries, first=8 + length, size=size)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON itself would keep the last of two equal names without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...], int, int]:
    tag, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if tag not in DTYPES:
        raise UserError(f"tensor {name} in {path} has type {tag}; this version reads {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name} has shape {shape} and offsets {start}, {stop}")
    return DTYPES[tag], shape, start, stop


def _checked(
    path: Path, entries: Mapping[str, tuple[np.dtype, tuple[int, ...], int, int]], *, first: int, size: int
) -> dict[str, Tensor]:
    """The tensors, which must lie back to back from `first` to the end of the file."""
    end = 0
    tensors = {}
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        needed = math.prod(shape) * dtype.itemsize
        if start != end or stop - start != needed:
            raise UserError(
                f"tensor {name} in {path} is {dtype}{list(shape)}, which takes bytes {end:,} to {end + needed:,}, but "
                f"the header says {start:,} to {stop:,}; copy the file again"
            )
        end = stop
        if first + stop > size:
            raise UserError(
                f"{path} is cut short: tensor {name}, {dtype}{list(shape)}, ends at byte {first + stop:,} and the file "
                f"has {size:,}; copy it again"
            )
        rows = _reader(path, dtype, shape, first + start)
        tensors[name] = Tensor(name=name, shape=shape, dtype=dtype, place=str(path), rows=rows)
    if first + end != size:
        raise UserError(
            f"{path} has {size - first - end:,} bytes after its last tensor; it is not the file its header "
            "describes: copy it again"
        )
    return tensors


def _reader(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> Callable[[int, int], np.ndarray]:
    """Rows of a tensor as a map of the file: pages are read when touched, and given back with the array."""
    inner = shape[1:]
    row_bytes = math.prod(inner) * dtype.itemsize

    def rows(start: int, stop: int) -> np.ndarray:
        if stop <= start or not row_bytes:
            return np.empty((max(stop - start, 0), *inner), dtype)
        return np.memmap(path, dtype, "r", offset + start * row_bytes, (stop - start, *inner))

    return rows


def write_folder(
    folder: Path, tensors: Sequence[Tensor], *, max_shard: int, on_bytes: OnBytes
) -> dict[str, dict[str, Any]]:
    """Write the tensors into a folder, one block at a time, as one file or several and an index.

    A tensor larger than `max_shard` bytes has a file of its own. Returns {name: type, shape and digest}.
    """
    shards = _shards(tensors, max_shard)
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    total = sum(tensor.num_bytes for tensor in tensors)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_bytes(done, total)

    described: dict[str, dict[str, Any]] = {}
    for file, shard in zip(files, shards, strict=True):
        described |= _write_file(folder / file, shard, count)
    if len(shards) > 1:
        weight_map = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return described


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _shards(tensors: Sequence[Tensor], max_shard: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    room = max_shard
    for tensor in tensors:
        if shards[-1] and tensor.num_bytes > room:
            shards.append([])
            room = max_shard
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def _write_file(path: Path, tensors: Sequence[Tensor], count: Callable[[int], None]) -> dict[str, dict[str, Any]]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on a format
    end = 0
    for tensor in tensors:
        offsets = [end, end := end + tensor.num_bytes]
        header[tensor.name] = {"dtype": TAGS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    described = {}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            digest = Digest(tensor)
            for block in tensor.blocks():
                assert (block.dtype, block.shape[1:]) == (tensor.dtype, tensor.shape[1:]), tensor.name
                digest.update(block)
                file.write(_bytes(block))
                count(block.nbytes)
            described[tensor.name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "digest": str(digest)}
        file.flush()
        os.fsync(file.fileno())
    return described


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the block ends: it appears whole or not at all.

    Raises UserError where the name is taken by anything but an empty folder.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not an empty folder; give a new one")
    unfinished = folder.with_name(f"tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, folder)
        descriptor = os.open(folder.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
