"""A digest of an array's values that does not depend on how the array is split over devices and hosts.

Every element is hashed with its place in the whole array, and the hashes are added up. Addition has no order, so each
device sums the elements it holds and the total is the same on any mesh: an array that lies on many hosts is verified
where it lies, by a program as fast as its memory, and nobody gathers it.

Two sums of 32 bits. An element's hash is a bijection of its bits, so an array in which one element has changed, by one
bit or by all, never has the same digest; other damage passes unnoticed with a chance of 2^-64.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Odd multipliers, one for each dimension, and a first value, for each of the two sums: digits of the golden ratio,
# and of sqrt(2) and so on, as good as any that have no pattern.
_PLACES = (
    (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09),
    (0x6A09E667, 0xBB67AE85, 0x3C6EF373, 0xA54FF53B, 0x510E527F, 0x9B05688D, 0x1F83D9AB, 0x5BE0CD19),
)
_FIRST = (0x243F6A88, 0x13198A2E)
_BLOCK = 2**16  # elements the numpy way works on at once: they stay in the processor's cache
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # bytes of an element -> how its bits are read


def digests(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """{name: digest}, each an array of two uint32 that may still be on its way; `text` writes one down.

    Arrays on the host or on CPU devices of this process are read here; for all others every process calls this
    together, with arrays on one mesh, and all get the same.
    """
    here = {name: array for name, array in arrays.items() if on_this_host(array)}
    away = {name: array for name, array in arrays.items() if name not in here}
    meshes = {sharding.mesh for a in away.values() if isinstance(sharding := a.sharding, NamedSharding)}
    assert len(meshes) <= 1, "arrays of one state lie on one mesh"
    found = dict(_on_devices(meshes.pop() if meshes else None)(away)) if away else {}
    return found | {name: _on_host(np.asarray(array)) for name, array in here.items()}


def text(digest: Any) -> str:
    """16 hex digits."""
    return "".join(f"{int(word):08x}" for word in np.asarray(digest))


def on_this_host(array: Any) -> bool:
    """Whether numpy reads the array where it lies."""
    if not isinstance(array, jax.Array):
        return True
    return array.is_fully_addressable and next(iter(array.devices())).platform == "cpu"


@functools.lru_cache(maxsize=8)
def _on_devices(mesh: Mesh | None) -> Any:
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda arrays: {name: _traced(array) for name, array in arrays.items()}, out_shardings=whole)


def _traced(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    sums = []
    for places, first in zip(_PLACES, _FIRST, strict=True):
        key = jnp.full(bits.shape, first, jnp.uint32)
        for dimension in range(bits.ndim):
            key += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * jnp.uint32(places[dimension])
        sums.append(jnp.sum(_mixed(bits ^ key), dtype=jnp.uint32))
    return jnp.stack(sums)


def _on_host(array: np.ndarray) -> np.ndarray:
    """The same sums by numpy, block after block of the array's rows."""
    size = array.dtype.itemsize
    wide = (*array.shape, 2) if size == 8 else array.shape  # numbers of 64 bits count as pairs of 32
    words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[size])
    columns = wide[-1] if wide else 1
    rows = words.reshape(-1, columns) if words.size else words.reshape(0, 1)
    leading = wide[:-1]
    sums = [0, 0]
    step, width = max(1, _BLOCK // max(1, columns)), min(columns, _BLOCK)
    for start in range(0, len(rows), step):
        numbers = np.arange(start, min(start + step, len(rows)), dtype=np.uint64)
        for left in range(0, columns, width):
            bits = rows[start : start + step, left : left + width].astype(np.uint32)
            for which in range(2):
                row_key = _row_keys(numbers, leading, which)
                column_key = np.arange(left, left + bits.shape[1], dtype=np.uint32)
                column_key *= np.uint32(_PLACES[which][len(leading)] if wide else 0)
                mixed = _mixed(bits ^ (row_key[:, None] + column_key))
                sums[which] += int(mixed.sum(dtype=np.uint32))
    return np.array([total % 2**32 for total in sums], np.uint32)


def _row_keys(numbers: np.ndarray, leading: tuple[int, ...], which: int) -> np.ndarray:
    """What the leading dimensions add to the key of each row; `numbers` count rows through all of them."""
    keys = np.full(len(numbers), _FIRST[which], np.uint32)
    for dimension in range(len(leading)):
        stride = math.prod(leading[dimension + 1 :])
        index = (numbers // np.uint64(stride)) % np.uint64(leading[dimension])
        keys += index.astype(np.uint32) * np.uint32(_PLACES[which][dimension])
    return keys


def _mixed(bits: Any) -> Any:
    """A bijection of 32 bits in which every input bit changes about half of the output (the end of MurmurHash3)."""
    bits = bits ^ (bits >> 16)
    bits = bits * np.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> 13)
    bits = bits * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
