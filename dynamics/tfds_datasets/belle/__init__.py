"""TFDS data set `belle`: importing this registers it."""

from .belle_dataset_builder import Builder

__all__ = ["Builder"]
