"""TFDS data set `belle_multiturn`: importing this registers it."""

from .belle_multiturn_dataset_builder import Builder

__all__ = ["Builder"]
