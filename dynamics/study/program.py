"""The program of a run: all that decides what is compiled, and nothing else. Runs that differ in data share it."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from dynamics.data.pair_batches import pair_room
from dynamics.errors import UserError
from dynamics.losses.objective import Objective
from dynamics.model.llama import LlamaConfig, abstract
from dynamics.model.lora import Lora
from dynamics.model.sharding import MeshShape, abstract_mesh, batch_shardings, device_bytes, make_mesh, num_row_shards
from dynamics.study.run import Batch
from dynamics.study.topologies import Topology, parse_topology
from dynamics.train.optimizer import Optimizer
from dynamics.train.step import TrainState, abstract_state, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """What the batches of a run that learns from preferences hold besides: see `compact_pairs`."""

    number: int  # of a step that there is room for
    sides: int  # replies of a pair
    shared_prompt: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One training step on one machine. The reference of preferences is a number of each reply, and no model in it."""

    shape: LlamaConfig
    batch: Batch
    headed: int  # positions of a step that the head is applied to
    objective: Objective
    optimizer: Optimizer
    mesh: MeshShape
    adapter: Lora | None
    topology: str
    slices: int
    pairs: Pairs | None = None  # None: it learns from records

    @property
    def machine(self) -> Topology:
        return parse_topology(self.topology, slices=self.slices)

    def mesh_sizes(self) -> dict[str, int]:
        """Chips along each axis. Raises UserError when the mesh does not fit the machine."""
        return dict(abstract_mesh(self.mesh, self.machine.num_chips).shape)

    @property
    def num_chips(self) -> int:
        """Chips that the mesh uses, which may be fewer than the machine has."""
        return math.prod(self.mesh_sizes().values())

    @property
    def row_shards(self) -> int:
        return num_row_shards(abstract_mesh(self.mesh, self.machine.num_chips))

    @property
    def cap(self) -> int:
        """Positions of a row shard's micro-batch that the head is applied to."""
        return max(1, self.headed // (self.row_shards * self.batch.micro))

    @property
    def pair_cap(self) -> int:
        """Pairs that a row shard's micro-batch has room for."""
        assert self.pairs is not None
        each = max(1, math.ceil(self.pairs.number / (self.row_shards * self.batch.micro)))
        return pair_room(each)

    @property
    def branches(self) -> bool:
        """Whether rows hold replies that share a prompt and do not see each other."""
        return self.pairs is not None and self.pairs.shared_prompt

    @property
    def problem(self) -> str | None:
        """Why rows or parameters cannot be split over the mesh, or the mesh over the machine; None when they can."""
        try:
            self.check()
        except UserError as error:
            return str(error)
        return None

    def check(self) -> None:
        """UserError when rows or parameters cannot be split over the mesh: told before anything is compiled."""
        parts = self.row_shards * self.batch.micro
        if self.batch.rows % parts:
            raise UserError(
                f"{self.batch.rows} rows cannot be split over {self.row_shards} row shards of mesh "
                f"{MeshShape(**self.mesh_sizes())} and {self.batch.micro} micro-batches; choose rows that "
                f"{parts} divides, or more sequence or tensor and less fsdp"
            )
        self._check_attention()
        self.state_bytes()

    def _check_attention(self) -> None:
        """UserError where heads or positions cannot be split as attention splits them."""
        sizes, heads, length = self.mesh_sizes(), self.shape.num_heads, self.batch.length
        parts = sizes["tensor"] * sizes["sequence"]
        if heads % parts:
            raise UserError(
                f"{heads} heads cannot be split over tensor x sequence of size {parts}; use a mesh with tensor x "
                f"sequence of {math.gcd(heads, parts)}"
            )
        if length % sizes["sequence"]:
            raise UserError(
                f"rows of {length} cannot be split over sequence of size {sizes['sequence']}; use a mesh with sequence "
                f"of {math.gcd(length, sizes['sequence'])}"
            )

    def state_bytes(self) -> dict[str, int]:
        """{name: bytes on each chip} of parameters, optimizer state and, with adapters, the frozen model."""
        shape = dataclasses.replace(self.shape, remat="none")  # decides no byte of it, and a search asks for many
        return _state_bytes(shape, self.optimizer, self.adapter, MeshShape(**self.mesh_sizes()))

    def lower(self) -> jax.stages.Lowered:
        """The step's program for the machine's chips, none of which needs to be here."""
        mesh = make_mesh(self.mesh, devices(self.machine))
        state = abstract_state(abstract(self.shape), self.optimizer, mesh, adapter=self.adapter)
        batch = _batch(self)
        placed = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
            for (name, array), sharding in zip(batch.items(), batch_shardings(batch, mesh).values(), strict=True)
        }
        return make_step(self.objective, self.optimizer, mesh).lower(state, placed)


@functools.lru_cache(maxsize=256)
def _state_bytes(shape: LlamaConfig, optimizer: Optimizer, adapter: Lora | None, mesh: MeshShape) -> dict[str, int]:
    sizes = abstract_mesh(mesh, math.prod(dataclasses.astuple(mesh)))
    return device_bytes(_abstract_state(shape, optimizer, adapter), sizes)


@functools.lru_cache(maxsize=16)
def _abstract_state(shape: LlamaConfig, optimizer: Optimizer, adapter: Lora | None) -> TrainState:
    return abstract_state(abstract(shape), optimizer, None, adapter=adapter)


def devices(machine: Topology) -> list[Any]:
    """The chips of a machine as the compiler knows them."""
    from jax.experimental import topologies

    options: dict[str, Any] = dict(machine.chip.options)
    if machine.slices > 1:
        options["num_slices"] = machine.slices
    if math.prod(machine.shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=machine.name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the compiler knows no topology {machine.name!r} ({str(error).partition(':')[2].strip()}); such as "
            f"{', '.join(f'{machine.chip.name}:{shape}' for shape in machine.chip.shapes)} are known"
        ) from error
    return list(described.devices)


def _batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a device batch; see data/batches.py and data/pair_batches.py."""
    micro, rows, length = program.batch.micro, program.batch.rows // program.batch.micro, program.batch.length
    whole = dict.fromkeys(("tokens", "positions", "segments"), (np.int32, (micro, rows, length)))
    listed = (micro, program.row_shards, program.cap)
    kinds = {"trained_index": np.int32, "trained_targets": np.int32, "trained_weights": np.float32}
    arrays = whole | {name: (kind, listed) for name, kind in kinds.items()}
    if program.pairs is not None:
        each = (micro, program.row_shards, program.pair_cap)
        arrays |= {"branches": (np.int32, (micro, rows, length))} if program.branches else {}
        arrays |= {"trained_reply": (np.int32, listed), "pair_weights": (np.float32, each)}
        arrays |= {"reference": (np.float32, (*each, program.pairs.sides))}
    return {name: jax.ShapeDtypeStruct(shape, kind) for name, (kind, shape) in arrays.items()}
