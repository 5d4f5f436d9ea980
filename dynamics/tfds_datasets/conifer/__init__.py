"""TFDS data set `conifer`: importing this registers it."""

from .conifer_dataset_builder import Builder

__all__ = ["Builder"]
