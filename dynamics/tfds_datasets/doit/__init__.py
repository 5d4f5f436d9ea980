"""TFDS data set `doit`: importing this registers it."""

from .doit_dataset_builder import Builder

__all__ = ["Builder"]
