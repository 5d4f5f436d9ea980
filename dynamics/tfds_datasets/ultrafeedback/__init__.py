"""TFDS data set `ultrafeedback`: importing this registers it."""

from .ultrafeedback_dataset_builder import Builder

__all__ = ["Builder"]
