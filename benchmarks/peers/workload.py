"""The workload that every peer trains on: one file of documents and packed rows, one file of first weights.

Only the standard library and NumPy, because each peer's environment imports it.

    documents   random tokens, lognormal lengths (median 123, mean 147, 95th percentile 330), second half is completion
    rows        the same documents in the same order, packed first-fit into 8 rows of 512 for each step
    weights     by the names and in the layout of transformers' LlamaForCausalLM, float32
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MEDIAN, SIGMA = 123, 0.6  # tokens of a document, and the spread of their logarithm
ROWS, LENGTH = 8, 512

# LLaMA of 58 M parameters. One dictionary by transformers' names, so that every peer reads the same numbers.
SHAPE = {
    "vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 1376, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
}  # fmt: skip
# AdamW with clipping by global norm; norms are not decayed. The rate rises over `warmup_steps`, then stays.
OPTIMIZER = {
    "lr": 3e-4, "warmup_steps": 10, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0,
}  # fmt: skip

PACKED = ("tokens", "targets", "weights", "positions", "segments")  # arrays [steps, rows, length]; 0 is padding


def documents(num: int, *, vocab_size: int, longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, trained) of each document; the second half of each is trained on."""
    rng = np.random.default_rng(0)
    for size in np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, num).astype(int), 8, longest):
        yield rng.integers(4, vocab_size, size).astype(np.int32), np.arange(size) >= size // 2


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is in the file: ragged documents, and the rows they were packed into."""

    documents: list[tuple[np.ndarray, np.ndarray]]
    packed: dict[str, np.ndarray]

    @property
    def num_steps(self) -> int:
        return len(self.packed["tokens"])

    def rows(self, step: int) -> dict[str, np.ndarray]:
        """The packed rows of a step; after the last step the first comes again."""
        return {name: array[step % self.num_steps] for name, array in self.packed.items()}

    def padded_rows(self, step: int) -> dict[str, np.ndarray]:
        """The next documents, one to a row; after the last document the first comes again."""
        rows = {name: np.zeros((ROWS, LENGTH), array.dtype) for name, array in self.packed.items()}
        for row in range(ROWS):
            tokens, trained = self.documents[(step * ROWS + row) % len(self.documents)]
            size = len(tokens)
            rows["tokens"][row, :size], rows["targets"][row, : size - 1] = tokens, tokens[1:]
            rows["weights"][row, : size - 1] = trained[1:]
            rows["positions"][row, :size], rows["segments"][row, :size] = np.arange(size), 1
        return rows

    def save(self, path: Path) -> None:
        tokens, trained = (np.concatenate(part) for part in zip(*self.documents, strict=True))
        lengths = np.array([len(document) for document, _ in self.documents])
        packed = {f"packed_{name}": array for name, array in self.packed.items()}
        np.savez(path, tokens=tokens, trained=trained, lengths=lengths, **packed)

    @staticmethod
    def load(path: Path) -> "Workload":
        with np.load(path) as saved:
            ends = np.cumsum(saved["lengths"])[:-1]
            pieces = (np.split(saved[name], ends) for name in ("tokens", "trained"))
            return Workload(list(zip(*pieces, strict=True)), {name: saved[f"packed_{name}"] for name in PACKED})
