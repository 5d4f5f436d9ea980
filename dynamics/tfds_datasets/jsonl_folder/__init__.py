"""TFDS data set `jsonl_folder`: importing this registers it."""

from .jsonl_folder_dataset_builder import Builder

__all__ = ["Builder"]
