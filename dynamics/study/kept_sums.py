"""Numbers that a pass of a model gives for the documents of a store, kept in parts as they come.

    <folder>/about.json       what decides the numbers, for a reader
    <folder>/part-00000.npz   documents of the store and their sums, with a digest beside it

A part is written at once, so a pass that was interrupted, or killed, goes on with what no part holds.
"""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from dynamics import config
from dynamics.errors import UserError
from dynamics.study.cache import read_sealed, set_aside, write_sealed
from dynamics.study.folder import write_json
from dynamics.train.distributed import agree, is_lead


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptSums:
    """The parts in a folder. Of several processes the lead alone writes; hold the folder's lock."""

    folder: Path
    size: int  # documents of the store
    sides: int | None = None  # numbers of a document; None: one, and the arrays have no axis for it
    dtype: Literal["float32", "float64"] = "float64"
    unit: str = "nats, summed over trained tokens"

    def describe(self, identity: dict[str, Any]) -> None:
        """Say beside the parts what decides them."""
        if is_lead() and not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", {"identity": identity, "unit": self.unit})

    def check(self) -> None:
        """Set aside every part that is damaged, and say so: its documents are computed again."""
        for path in self._parts() if is_lead() else ():
            try:
                self._load(path)
            except UserError as damage:
                set_aside(path, str(damage))

    def read(self) -> Float[np.ndarray, "documents *sides"]:
        """The sums of every document of the store; NaN where no part has them."""
        known = np.full((self.size, *self._sides), np.nan, self.dtype)
        for path in self._parts():
            documents, sums = self._load(path)
            known[documents] = sums
        return known

    def write(self, documents: Int64[np.ndarray, " some"], sums: Float[np.ndarray, "some *sides"]) -> None:
        """A new part."""
        if not len(documents) or not is_lead():
            return
        numbers = [int(path.stem.removeprefix("part-")) for path in self._parts()]
        buffer = io.BytesIO()
        np.savez(buffer, documents=documents.astype(np.int64), sums=sums.astype(self.dtype))
        write_sealed(self.folder / f"part-{max(numbers, default=-1) + 1:05d}.npz", buffer.getvalue())

    @property
    def _sides(self) -> tuple[int, ...]:
        return () if self.sides is None else (self.sides,)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))

    def _load(self, path: Path) -> tuple[Int64[np.ndarray, " some"], Float[np.ndarray, "some *sides"]]:
        try:
            with np.load(io.BytesIO(read_sealed(path))) as saved:
                documents, sums = saved["documents"], saved["sums"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no part of a pass over documents ({error})") from error
        fits = documents.ndim == 1 and sums.shape == (len(documents), *self._sides) and np.isfinite(sums).all()
        if not fits or (documents.size and not 0 <= documents.min() <= documents.max() < self.size):
            raise UserError(f"{path} holds other documents than its store has")
        return documents, sums


def check_together(missing: Int64[np.ndarray, " documents"], what: str) -> None:
    """UserError where several processes would compute the numbers of different documents."""
    told = config.fingerprint(missing.tolist())
    if agree(told) != told:
        raise UserError(
            f"{what} of {len(missing)} documents are missing here and of others in process 0: the processes see other "
            "data or other cache folders; give all of them the same"
        )
