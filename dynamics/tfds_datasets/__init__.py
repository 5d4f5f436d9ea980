"""Data sets for `tensorflow_datasets`: importing this package registers them, for tfds.builder and tfds.data_source.

Each folder is also what `tfds build` wants: `tfds build --manual_dir=...` in it prepares the data set.
"""

from dynamics.tfds_datasets import (
    alpaca,
    belle,
    belle_multiturn,
    conifer,
    doit,
    dolly,
    jsonl_folder,
    sharegpt,
    ultrachat,
    ultrafeedback,
)

__all__ = [
    "alpaca",
    "belle",
    "belle_multiturn",
    "conifer",
    "doit",
    "dolly",
    "jsonl_folder",
    "sharegpt",
    "ultrachat",
    "ultrafeedback",
]
