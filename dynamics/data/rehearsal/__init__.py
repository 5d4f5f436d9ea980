"""Data in DoIT's published layout, made from the practice world: to run the whole study of the paper without its files.

Design and reasons: docs/guide/doit-data.md.
"""

from dynamics.data.rehearsal.source import GENERATOR_VERSION, DoitRehearsal

__all__ = ["GENERATOR_VERSION", "DoitRehearsal"]
