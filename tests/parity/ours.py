"""Our logits of a folder, and how far they may be from transformers'."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.model.convert import load_model, read_config

# Relative to the largest logit. Both compute in float32 and differ in the order of sums and in the last bits of
# cosines: a few units of 2^-24 = 6e-8 for each of some ten roundings a layer. Seen: at most 2.4e-6.
FLOAT32 = 1e-5

# In bfloat16 both round to 8 bits some ten times a layer, in other places, so neither is the truth: that is the result
# in float32. Ours may be as far from it as theirs is (seen: 0.78 and 0.92 of it; the rest is luck of a small sample),
# and by Pythagoras two independent errors of that size are sqrt(2) apart. An error of reading is 10 to 100 times that.
BFLOAT16_SHARE = 1.25


def logits(folder: Path, ids: np.ndarray, *, compute_dtype: str, mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
    """[rows, length, vocabulary] in float32, the head applied in the compute dtype as transformers does."""
    config = dataclasses.replace(read_config(folder), compute_dtype=compute_dtype)
    model = load_model(folder, config, mesh=mesh)
    positions = jnp.tile(jnp.arange(ids.shape[1], dtype=jnp.int32), (len(ids), 1))

    def apply(model, tokens):
        hidden = model(tokens, positions, jnp.ones_like(positions))
        return (hidden @ model.head.astype(hidden.dtype)).astype(jnp.float32)

    return np.asarray(jax.jit(apply)(model, jnp.asarray(ids)))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The root mean square of the difference, relative to that of what is expected."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def check_bfloat16(found: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> None:
    """Our bfloat16 logits are as near to the exact ones as theirs, and as near to theirs as two such errors allow."""
    allowed = BFLOAT16_SHARE * error(theirs, exact)
    assert error(found, exact) < allowed
    assert error(found, theirs) < math.sqrt(2) * allowed


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
