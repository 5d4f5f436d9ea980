"""How our rows stand in TFDS: their features, their bytes, and which of them are of which ability."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from dynamics.errors import UserError

_EXAMPLE: Any = tf_example_pb2.Example  # type: ignore[attr-defined]  # made when it is loaded


class CanonicalWriter(writer.ExampleWriter):
    """Writes the features of an example in the order of their names.

    tfds leaves the order to protobuf, which draws it anew in each process: the same data then never has the same bytes.
    """

    def write(self, path: Any, examples: Any) -> Any:
        return super().write(path, ((key, _canonical(example)) for key, example in examples))


def _canonical(example: bytes) -> bytes:
    return _EXAMPLE.FromString(example).SerializeToString(deterministic=True)


def record_features() -> dict[str, Any]:
    """The features of a record's row; see dynamics.data.inputs.row_of."""
    text = tfds.features.Text()
    return {
        **dict.fromkeys(("ability", "source", "type", "idx", "answer", "id"), text),
        "messages": tfds.features.Sequence({"role": text, "content": text}),
        "choices": tfds.features.Sequence(text),
        "question_format": np.int64,
    }


def pair_features() -> dict[str, Any]:
    """The features of a pair's row: the prompt's messages, and two replies."""
    text = tfds.features.Text()
    return {
        **dict.fromkeys(("ability", "source", "id", "chosen", "rejected"), text),
        "messages": tfds.features.Sequence({"role": text, "content": text}),
    }


def ability_rows(builder: Any, split: str) -> dict[str, tuple[int, int]]:
    """{ability: (first row, row after the last)} of a prepared split of a builder of ours, or read from its folder."""
    counts: Mapping[str, Mapping[str, int]] = builder.info.metadata["counts"]
    if split not in counts:
        raise UserError(f"{builder.info.full_name} has no split {split!r}; it has {', '.join(counts)}")
    start, found = 0, {}
    for ability, count in counts[split].items():
        found[ability] = (start, start + count)
        start += count
    return found
