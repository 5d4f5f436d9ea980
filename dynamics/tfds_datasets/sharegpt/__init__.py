"""TFDS data set `sharegpt`: importing this registers it."""

from .sharegpt_dataset_builder import Builder

__all__ = ["Builder"]
