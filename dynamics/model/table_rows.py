"""Tensors that differ from what is stored: of another type, or tables with rows for tokens that were added."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dynamics.model.hf_names import EMBEDDING, HEAD
from dynamics.model.safetensor_files import Tensor


def cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
    if dtype == tensor.dtype:
        return tensor
    return dataclasses.replace(tensor, dtype=dtype, rows=lambda start, stop: tensor.rows(start, stop).astype(dtype))


def resized(tensor: Tensor, num_rows: int) -> Tensor:
    """Embedding and head with rows up to `num_rows`; every other tensor as it is."""
    if tensor.name not in (EMBEDDING, HEAD):
        return tensor
    return grown(tensor, num_rows, num_old=tensor.shape[0], num_named=tensor.shape[0])


def grown(tensor: Tensor, num_rows: int, *, num_old: int, num_named: int) -> Tensor:
    """A table of one row a token, with rows up to `num_rows`.

    New rows, those from `num_old` to `num_named` (tokens that had a row for padding) and those past its end, are the
    mean of the first `num_old`: a token nobody has seen starts in the middle of those that were. The mean is
    taken in float32 or wider and then cast, and is the same however the table is later split.
    """
    stored = tensor.shape[0]
    if num_rows == stored and num_named <= num_old:
        return tensor
    mean: list[np.ndarray] = []

    def rows(start: int, stop: int) -> np.ndarray:
        kept = tensor.rows(start, min(stop, stored)) if start < stored else tensor.rows(0, 0)
        new = np.arange(start, stop)
        new = (new >= stored) | ((new >= num_old) & (new < num_named))
        if not new.any():
            return kept
        if not mean:
            total = sum(block.astype(np.float64).sum(axis=0) for block in _first_rows(tensor, num_old))
            mean.append(np.asarray(total / num_old, np.float32).astype(tensor.dtype))
        whole = np.empty((stop - start, *tensor.shape[1:]), tensor.dtype)
        whole[: len(kept)] = kept
        whole[new] = mean[0]
        return whole

    return dataclasses.replace(tensor, shape=(num_rows, *tensor.shape[1:]), rows=rows)


def _first_rows(tensor: Tensor, count: int) -> Iterator[np.ndarray]:
    return dataclasses.replace(tensor, shape=(count, *tensor.shape[1:])).blocks()
