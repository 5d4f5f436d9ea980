"""TFDS data set `ultrachat`: importing this registers it."""

from .ultrachat_dataset_builder import Builder

__all__ = ["Builder"]
