"""dynamics: train instruction-tuned LLaMA-style models and study how each ability grows.

Importing this package loads neither jax nor tensorflow; each module names what it needs.
"""

__version__ = "0.1.0"
