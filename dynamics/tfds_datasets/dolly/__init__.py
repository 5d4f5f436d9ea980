"""TFDS data set `dolly`: importing this registers it."""

from .dolly_dataset_builder import Builder

__all__ = ["Builder"]
