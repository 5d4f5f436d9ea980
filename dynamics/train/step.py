"""One update: sums of gradients over micro-batches, one division, one direction, one learning rate.

The step knows no file, clock or logger. Everything it returns stays on the device.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from dynamics.errors import UserError
from dynamics.losses.objective import Objective, Sums
from dynamics.model.lora import Lora, attach, freeze, init_adapters
from dynamics.model.sharding import activate, batch_shardings, check_sharding, num_row_shards, shardings_for
from dynamics.train.distributed import row_shards_here, several
from dynamics.train.optimizer import Optimizer, global_norm

Batch = Mapping[str, Any]  # a DeviceBatch: arrays [micro, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "opt_state", "step", "total_steps", "frozen"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What a run is at one moment; `step` updates have been made of the `total_steps` the schedule is laid over.

    No random state: whatever is random is a function of a seed and the step, so the step is all that resume needs.
    """

    model: Any  # what is trained: the model, or its adapters
    opt_state: Any
    step: Int[Array, "*members"] | Any
    total_steps: Int[Array, "*members"] | Any
    frozen: Any = None  # the model that the adapters belong to; None when all of it is trained

    def whole_model(self) -> Any:
        """The model to call: the trained one, or the frozen one with its adapters."""
        return whole_model(self.frozen, self.model)

    def trained(self) -> "TrainState":
        """All but the frozen model: what a step changes, and a checkpoint holds."""
        return dataclasses.replace(self, frozen=None)


def whole_model(frozen: Any, model: Any) -> Any:
    """`model` itself, or where it is the adapters of a frozen one, both together."""
    return model if frozen is None else attach(frozen, model)


def init_state(
    model: Any,
    optimizer: Optimizer,
    *,
    total_steps: int,
    mesh: Mesh | None = None,
    adapter: Lora | None = None,
    key: Array | None = None,
) -> TrainState:
    """A run at step 0; with an `adapter`, one that trains adapters drawn from `key` and keeps the model frozen.

    With a mesh, every array is placed as the step will leave it. The model's arrays may be the state's own afterwards,
    and the first step gives away what it trains: keep no other use of them. A frozen model is never given away.
    """
    if total_steps < 1:
        raise UserError(f"total_steps={total_steps}; a run makes at least one update")
    assert (adapter is None) == (key is None), "a key is what adapters are drawn from"
    if mesh is not None:
        check_sharding(model, mesh)
    return _builder(optimizer, mesh, adapter)(model, np.int32(total_steps), key)


def abstract_state(
    model: Any, optimizer: Optimizer, mesh: Mesh | None = None, *, adapter: Lora | None = None
) -> TrainState:
    """Shapes, types and placement of the state of a model (or of its shapes): what a checkpoint is restored to."""
    build = functools.partial(_build, optimizer, None, adapter)
    shapes = jax.eval_shape(build, model, jax.ShapeDtypeStruct((), np.int32), jax.random.key(0))
    if mesh is None:
        return shapes
    check_sharding(model, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings_for(shapes, mesh),
    )


def _build(
    optimizer: Optimizer, mesh: Mesh | None, adapter: Lora | None, model: Any, total_steps: Array, key: Array | None
) -> TrainState:
    trained: Any = model
    frozen = None
    if adapter is not None:
        assert key is not None
        trained, frozen = init_adapters(model, adapter, key), freeze(model, adapter)
    opt_state = optimizer.transform().init(trained)
    state = TrainState(
        model=trained, opt_state=opt_state, step=jnp.zeros((), jnp.int32), total_steps=total_steps, frozen=frozen
    )
    return state if mesh is None else jax.lax.with_sharding_constraint(state, shardings_for(state, mesh))


@functools.lru_cache(maxsize=64)
def _builder(optimizer: Optimizer, mesh: Mesh | None, adapter: Lora | None) -> Callable[..., TrainState]:
    """Compiled once for each optimizer, mesh, adapter and shape, not once for each run."""
    return jax.jit(functools.partial(_build, optimizer, mesh, adapter))


def gradient_sums(objective: Objective, model: Any, batch: Batch, frozen: Any = None) -> tuple[Any, Sums]:
    """Gradient of the sum of the loss over all micro-batches, and the summed metrics. Nothing is divided.

    With a frozen model, `model` is its adapters and only they are differentiated.
    """

    def loss(model: Any, micro_batch: Batch) -> tuple[Array, Sums]:
        return objective(whole_model(frozen, model), micro_batch)

    def one(micro_batch: Batch) -> tuple[Any, Sums]:
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(model, micro_batch)
        return gradients, metrics

    num_micro = len(next(iter(batch.values())))
    if num_micro == 1:  # the loop would cost a pass over a zero gradient
        return one({name: value[0] for name, value in batch.items()})

    def body(sums: Any, micro_batch: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), sums, one(micro_batch)), None

    shapes = jax.eval_shape(one, {name: value[0] for name, value in batch.items()})
    # float32 sums: bfloat16 would lose the small micro-batches in the large total.
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
    sums, _ = jax.lax.scan(body, zeros, dict(batch))
    return sums


def update(objective: Objective, optimizer: Optimizer, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
    """One update, without jit; a frozen model comes back as it was.

    The gradient of the mean loss over the whole batch is the sum of the micro-batches' gradients over the sum of their
    weights, so any split into micro-batches is the same update. A batch whose weights are all zero has no mean: it
    counts as a step, changes neither parameters nor optimizer, and shows up as weight 0 in the metrics.
    """
    gradients, metrics = gradient_sums(objective, state.model, batch, state.frozen)
    weight = metrics["loss"][1].astype(jnp.float32)
    trained = weight > 0
    gradients = jax.tree.map(lambda g: g * jnp.where(trained, 1.0 / jnp.where(trained, weight, 1.0), 0.0), gradients)
    direction, opt_state = optimizer.transform().update(gradients, state.opt_state, state.model)
    rate = optimizer.learning_rate(state.step, state.total_steps)
    model = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), state.model, direction)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(trained, new, old))
    one = jnp.ones((), jnp.float32)
    metrics = metrics | {"grad_norm": (global_norm(gradients), one), "learning_rate": (rate, one)}
    new_state = dataclasses.replace(
        state,
        model=keep(model, state.model),
        opt_state=keep(opt_state, state.opt_state),
        step=state.step + 1,
    )
    return new_state, metrics


class Step:
    """A compiled update; call it with a state (whose trained part it consumes) and a batch. Made by `make_step`."""

    def __init__(self, objective: Objective, optimizer: Optimizer, mesh: Mesh | None) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.mesh = mesh
        self.compiled = jax.jit(self._run, donate_argnums=0)

    def _run(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Sums]:
        with activate(self.mesh):
            state = dataclasses.replace(state, frozen=frozen)
            new_state, metrics = update(self.objective, self.optimizer, state, batch)
            new_state = new_state.trained()
        if self.mesh is not None:
            # Said, not left to the compiler: a state that came back placed otherwise would compile a second program.
            new_state = jax.lax.with_sharding_constraint(new_state, shardings_for(new_state, self.mesh))
            metrics = jax.lax.with_sharding_constraint(metrics, NamedSharding(self.mesh, PartitionSpec()))
        return new_state, metrics

    def place(self, batch: Batch) -> Batch:
        """Put a batch on the devices; rows, and groups of rows, lie along the mesh's row axes.

        A process of several gives the rows of its own devices (`row_shards_here`, in that order), and gets the arrays
        of the whole batch.
        """
        batch = dict(batch)
        if self.mesh is None:
            return jax.device_put(batch, None)
        if not several():
            return jax.device_put(batch, batch_shardings(batch, self.mesh))
        here, shards = row_shards_here(self.mesh), num_row_shards(self.mesh)
        whole = {
            name: jax.ShapeDtypeStruct((len(part), part.shape[1] // len(here) * shards, *part.shape[2:]), part.dtype)
            for name, part in batch.items()
        }
        shardings = batch_shardings(whole, self.mesh)
        return {name: _from_parts(batch[name], whole[name].shape, shardings[name], here, shards) for name in batch}

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        # The frozen model goes in beside the state and never comes out: neither changed, copied nor given away.
        new_state, metrics = self.compiled(state.trained(), state.frozen, self.place(batch))
        return dataclasses.replace(new_state, frozen=state.frozen), metrics

    def values(self, metrics: Sums) -> dict[str, float]:
        """The metrics on the host; waits for the step that made them."""
        return metric_values(metrics)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The program, not run: for counts of operations and memory."""
        return self.compiled.lower(state.trained(), state.frozen, batch)


def _from_parts(
    part: np.ndarray, shape: tuple[int, ...], sharding: NamedSharding, here: tuple[int, ...], shards: int
) -> Array:
    """A batch array of all processes, of which this one has the row shards `here`, one after another."""
    size = shape[1] // shards

    def rows(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        first = here.index(index[1].indices(shape[1])[0] // size) * size
        return part[:, first : first + size]

    return jax.make_array_from_callback(shape, sharding, rows)


@functools.lru_cache(maxsize=64)
def make_step(objective: Objective, optimizer: Optimizer, mesh: Mesh | None = None) -> Step:
    """The step for these settings. Equal settings give the same object, so a worker compiles once for each shape."""
    return Step(objective, optimizer, mesh)


def metric_values(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Means on the host, {name: sum / weight}, and `weight`: that of the loss. Waits for the step that made them.

    The mean of no weight at all is written as 0, beside its weight of 0.
    """
    sums = {name: (float(total), float(weight)) for name, (total, weight) in jax.device_get(dict(metrics)).items()}
    return {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()} | {
        "weight": sums["loss"][1]
    }
