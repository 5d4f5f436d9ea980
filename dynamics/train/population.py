"""Many small runs of one shape in one compiled step: the step of a single run, mapped over a leading dimension.

Members differ in parameters, data, length of run and learning-rate position; they share shapes, objective and
optimizer. A member that has made its updates keeps its state bit for bit while the others go on. Over several devices
the members are spread, each whole on its device.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from dynamics.errors import UserError
from dynamics.losses.objective import Objective, Sums
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log
from dynamics.train.loop import LAG, Hook, OpenBatches, Trained, train
from dynamics.train.optimizer import Optimizer
from dynamics.train.step import Batch, TrainState, metric_values, update

AXIS = "members"
ACTIVE = "active"  # the batch's entry that says which members are trained, bool [members]


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state whose arrays have the members as first dimension; the frozen model, which all share, stands once."""
    frozen = states[0].frozen
    if any(state.frozen is not frozen for state in states):
        raise UserError(
            "members of a population have frozen models of their own; give all states one and the same, or train them "
            "one by one"
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state.trained() for state in states))
    return dataclasses.replace(stacked, frozen=frozen)


def member(state: TrainState, index: int) -> TrainState:
    """The state of one member, in arrays of its own but for the frozen model."""
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], state.trained())
    return dataclasses.replace(own, frozen=state.frozen)


def stack_batches(batches: Sequence[Batch], active: Sequence[bool]) -> dict[str, np.ndarray]:
    """DeviceBatches [micro, ...] of the members as one [members, micro, ...].

    The cap on trained positions may differ between members; shorter ones are padded with entries of weight 0.
    """
    stacked = {ACTIVE: np.asarray(active, np.bool_)}
    for name in batches[0]:
        arrays = [np.asarray(batch[name]) for batch in batches]
        cap = max(array.shape[-1] for array in arrays)
        if name.startswith("trained_"):
            arrays = [np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, cap - a.shape[-1])]) for a in arrays]
        if len({array.shape for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UserError(f"members of a population have {name} of shapes {shapes}; give them batches of one shape")
        stacked[name] = np.stack(arrays)
    return stacked


def update_members(
    objective: Objective, optimizer: Optimizer, state: TrainState, batch: Batch
) -> tuple[TrainState, Sums]:
    """One update of every active member, without jit; an inactive one keeps its state and reports weight 0.

    What comes back is the trained part of the state: the frozen model, which has no members, goes in alone.
    """
    frozen = state.frozen

    def one(state: TrainState, batch: Batch, active: Bool[Array, ""]) -> tuple[TrainState, Sums]:
        new_state, metrics = update(objective, optimizer, dataclasses.replace(state, frozen=frozen), batch)
        new_state = jax.tree.map(lambda new, old: jnp.where(active, new, old), new_state.trained(), state)
        return new_state, jax.tree.map(lambda value: jnp.where(active, value, jnp.zeros_like(value)), metrics)

    batches = {name: value for name, value in batch.items() if name != ACTIVE}
    return jax.vmap(one)(state.trained(), batches, batch[ACTIVE])


class PopulationStep:
    """A compiled update of all members; stands where the loop expects a Step. Made by `make_population_step`."""

    def __init__(self, objective: Objective, optimizer: Optimizer, devices: tuple[Any, ...]) -> None:
        self.optimizer = optimizer
        self.num_devices = len(devices)
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        spread, everywhere = PartitionSpec(AXIS), PartitionSpec()
        self.spread, self.everywhere = NamedSharding(mesh, spread), NamedSharding(mesh, everywhere)

        def run(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Sums]:
            return update_members(objective, optimizer, dataclasses.replace(state, frozen=frozen), batch)

        if len(devices) > 1:
            # Said, not left to the compiler: a member's arrays never leave its device.
            specs = (spread, everywhere, spread)
            run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)
        self.compiled = jax.jit(run, donate_argnums=0)

    def place(self, state: TrainState) -> TrainState:
        """Spread arrays [members, ...] over the devices; a frozen model is whole on each."""
        trained = jax.device_put(state.trained(), self.spread)
        return dataclasses.replace(trained, frozen=jax.device_put(state.frozen, self.everywhere))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        new_state, metrics = self.compiled(state.trained(), state.frozen, jax.device_put(dict(batch), self.spread))
        return dataclasses.replace(new_state, frozen=state.frozen), metrics

    def values(self, metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        """`members`: the metrics of each, None for an inactive one; loss and gradient norm over the sound ones."""
        host = jax.device_get(dict(metrics))
        count = len(host["loss"][0])
        # An inactive member reports no learning-rate weight; an active one with an empty batch does.
        members = [
            metric_values({name: (total[i], weight[i]) for name, (total, weight) in host.items()})
            if host["learning_rate"][1][i]
            else None
            for i in range(count)
        ]
        sound = [values for values in members if values is not None and _is_sound(values)]
        weight = sum(values["weight"] for values in sound)
        loss = sum(values["loss"] * values["weight"] for values in sound) / weight if weight else 0.0
        norm = max((values["grad_norm"] for values in sound), default=0.0)
        return {"loss": loss, "grad_norm": norm, "weight": weight, "members": members}


@functools.lru_cache(maxsize=64)
def make_population_step(
    objective: Objective, optimizer: Optimizer, devices: tuple[Any, ...] | None = None
) -> PopulationStep:
    """The step for these settings, over the given devices (None: the first alone); equal settings, equal object."""
    return PopulationStep(objective, optimizer, devices or (jax.devices()[0],))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a population: its start, its data, its length, and what happens on the way."""

    state: TrainState
    batches: OpenBatches
    until: int
    hooks: tuple[Hook, ...] = ()
    log: Log | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedPopulation:
    """How a call of `train_population` went; `failures` says for each member that diverged when and how."""

    states: tuple[TrainState, ...]
    failures: dict[int, str]
    report: Trained


def train_population(
    members: Sequence[Member],
    step_fn: PopulationStep,
    *,
    checkpointer: Checkpointer | None = None,
    save_every: int = 0,
    meta: Mapping[str, Any] | None = None,
    lag: int = LAG,
) -> TrainedPopulation:
    """Train every member to its `until`; the same loop, log lines, hooks and interruption as `train`.

    All members make their updates in step, so after round r member i has made min(r, until) of them: that is what a
    checkpoint of the population (the stacked state) resumes from. A member whose loss stops being a number is
    reported in `failures`; the others go on.
    """
    rounds = [int(m.state.step) for m in members]
    start = max(rounds)
    for index, m in enumerate(members):
        if rounds[index] != min(start, m.until):
            raise UserError(
                f"member {index} is at step {rounds[index]} of {m.until} while another is at {start}; "
                "start all members of a population at step 0, or restore them from one checkpoint"
            )
    # Every device holds the same number; the spares are copies that never learn.
    spares = -len(members) % step_fn.num_devices
    states = [m.state for m in members] + [members[0].state] * spares
    state = step_fn.place(stack(states))
    logs = _MemberLogs(members)
    trained = train(
        state,
        functools.partial(_batches, members, spares),
        step_fn,
        until=max(m.until for m in members),
        hooks=[_member_hook(index, hook) for index, m in enumerate(members) for hook in m.hooks],
        checkpointer=checkpointer,
        save_every=save_every,
        meta=meta,
        log=logs,
        lag=lag,
    )
    return TrainedPopulation(
        states=tuple(member(trained.state, index) for index in range(len(members))),
        failures=logs.failures,
        report=trained,
    )


def _batches(members: Sequence[Member], spares: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Stacked batches of rounds start .. stop - 1; a member past its end repeats its last batch, unheeded."""
    sources = [m.batches(start, m.until) if start < m.until else m.batches(m.until - 1, m.until) for m in members]
    current: list[Batch] = [next(source) for source in sources]
    for step in range(start, stop):
        if step > start:
            for index, m in enumerate(members):
                if step < m.until:
                    current[index] = next(sources[index])
        active = [step < m.until for m in members] + [False] * spares
        yield stack_batches(current + [current[0]] * spares, active)


def _member_hook(index: int, hook: Hook) -> Hook:
    return Hook(steps=hook.steps, call=lambda step, state: hook.call(step, member(state, index)))


def _is_sound(values: Mapping[str, float]) -> bool:
    return math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])


class _MemberLogs:
    """The logs of all members, behind the three methods the loop uses of one; remembers who diverged."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.failures: dict[int, str] = {}

    def truncate(self, step: int) -> int:
        return sum(m.log.truncate(min(step, m.until)) for m in self.members if m.log is not None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for index, (m, own) in enumerate(zip(self.members, values["members"], strict=False)):
            if own is None:
                continue
            if not _is_sound(own):
                self.failures.setdefault(index, f"the loss of step {step} is {own['loss']}; lower peak_lr")
            if m.log is not None:
                m.log.write(step, own)

    def sync(self) -> None:
        for m in self.members:
            if m.log is not None:
                m.log.sync()
