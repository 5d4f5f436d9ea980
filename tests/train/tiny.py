"""A real model, objective and packed batches, as small as they come; shared by the tests of training."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.data.batches import compact
from dynamics.losses.sft import SFT
from dynamics.model.llama import SIZES, Llama, LlamaConfig, abstract, init
from dynamics.seeds import stream
from dynamics.train.optimizer import PRACTICE
from dynamics.train.step import TrainState, abstract_state, init_state

MODEL: LlamaConfig = dataclasses.replace(
    SIZES["0.2m"], vocab_size=64, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=32
)
OBJECTIVE = SFT(chunk=64)
OPTIMIZER = PRACTICE
ROWS, LENGTH = 8, 16


def host_batch(seed: int, step: int, *, rows: int = ROWS, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Packed rows of documents of random lengths; a pure function of seed and step."""
    rng = stream(seed, "tiny", step)
    tokens = rng.integers(1, MODEL.vocab_size, (rows, length)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    weights = np.zeros((rows, length), np.float32)
    for row in range(rows):
        start, segment = 0, 1
        while start < length - 2:
            stop = min(length, start + int(rng.integers(3, 9)))
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = segment
            weights[row, start + (stop - start) // 2 : stop - 1] = rng.integers(1, 3)
            start, segment = stop, segment + 1
    targets = np.roll(tokens, -1, axis=1)
    return {"tokens": tokens, "targets": targets, "weights": weights, "positions": positions, "segments": segments}


def device_batch(seed: int, step: int, *, groups: int = 1, micro: int = 1) -> dict[str, np.ndarray]:
    return compact(host_batch(seed, step), groups=groups, micro=micro, cap=ROWS * LENGTH // (groups * micro))


def empty_batch(seed: int, step: int) -> dict[str, np.ndarray]:
    """A batch in which nothing is trained."""
    batch = device_batch(seed, step)
    return batch | {"trained_weights": np.zeros_like(batch["trained_weights"])}


def batches(seed: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, stop):
        yield device_batch(seed, step)


open_batches = functools.partial(batches, 0)


@functools.cache
def _drawn(seed: int) -> Llama:
    return jax.tree.map(np.asarray, init(MODEL, jax.random.key(seed)))


def model(seed: int = 0) -> Llama:
    """The freshly drawn model, in arrays that may be given away."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), _drawn(seed))


def fresh(seed: int = 0, *, total_steps: int = 20, mesh: jax.sharding.Mesh | None = None) -> TrainState:
    return init_state(model(seed), OPTIMIZER, total_steps=total_steps, mesh=mesh)


def target(mesh: jax.sharding.Mesh | None = None) -> TrainState:
    """What a checkpoint of these runs is restored to."""
    return abstract_state(abstract(MODEL), OPTIMIZER, mesh)
