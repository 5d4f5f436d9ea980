"""Numbers that a pass of a model gives for the documents of a store, kept in parts as they come.

    <folder>/about.json       what decides the numbers, for a reader
    <folder>/part-00000.npz   documents of the store and their sums, with a digest beside it

A part is written at once, so a pass that was interrupted, or killed, goes on with what no part holds.
"""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from dynamics.errors import UserError
from dynamics.study.cache import read_sealed, set_aside, write_sealed
from dynamics.study.folder import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptSums:
    """The parts in a folder. Write with the folder's lock held."""

    folder: Path
    size: int  # documents of the store

    def describe(self, identity: dict[str, Any]) -> None:
        """Say beside the parts what decides them."""
        if not (self.folder / "about.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "about.json", {"identity": identity, "unit": "nats, summed over trained tokens"})

    def read(self) -> Float64[np.ndarray, " documents"]:
        """The sum of every document of the store; NaN where no part has it. A damaged part is set aside, and said."""
        known = np.full(self.size, np.nan)
        for path in self._parts():
            try:
                documents, sums = self._load(path)
            except UserError as damage:
                set_aside(path, str(damage))
            else:
                known[documents] = sums
        return known

    def write(self, documents: Int64[np.ndarray, " some"], sums: Float64[np.ndarray, " some"]) -> None:
        """A new part."""
        if not len(documents):
            return
        numbers = [int(path.stem.removeprefix("part-")) for path in self._parts()]
        buffer = io.BytesIO()
        np.savez(buffer, documents=documents, sums=sums)
        write_sealed(self.folder / f"part-{max(numbers, default=-1) + 1:05d}.npz", buffer.getvalue())

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))

    def _load(self, path: Path) -> tuple[Int64[np.ndarray, " some"], Float64[np.ndarray, " some"]]:
        try:
            with np.load(io.BytesIO(read_sealed(path))) as saved:
                documents, sums = saved["documents"], saved["sums"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no part of a pass over documents ({error})") from error
        fits = documents.ndim == 1 and sums.shape == documents.shape and np.isfinite(sums).all()
        if not fits or (documents.size and not 0 <= documents.min() <= documents.max() < self.size):
            raise UserError(f"{path} holds other documents than its store has")
        return documents, sums
