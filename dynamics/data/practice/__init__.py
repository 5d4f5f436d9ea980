"""The practice set: ten abilities generated from a seed, whose growth curves are known by design (see design.py)."""

from dynamics.data.practice.source import GENERATOR_VERSION, Practice

__all__ = ["GENERATOR_VERSION", "Practice"]
