"""TFDS data set `alpaca`: importing this registers it."""

from .alpaca_dataset_builder import Builder

__all__ = ["Builder"]
