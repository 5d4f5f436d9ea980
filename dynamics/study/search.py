"""Other settings of a step: which of them fit a machine, which is nearest, which is fastest. All by the estimate."""

import dataclasses
from typing import Any

from dynamics.errors import UserError
from dynamics.model.llama import REMATS
from dynamics.model.sharding import MeshShape
from dynamics.study import estimate
from dynamics.study.estimate import Work
from dynamics.study.program import Program
from dynamics.study.topologies import Topology, parse_topology

MARGIN = 0.9  # of the memory that a setting may need by the estimate, which is within a tenth of the compiler
MOST_COMPILED = 4  # settings that a search compiles before it gives up
_TENSOR = (1, 2, 4, 8)
_SEQUENCE = (1, 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting with what the estimate says of it."""

    program: Program
    used: float  # bytes a chip
    seconds: float  # of a step
    changes: int  # settings that differ from the run's own


def settings(program: Program) -> dict[str, Any]:
    """What a search may change, as plain data."""
    return {
        "topology": program.machine.label,
        "mesh": _mesh(program),
        "rows": program.batch.rows,
        "length": program.batch.length,
        "micro": program.batch.micro,
        "remat": program.shape.remat,
    }


def _mesh(program: Program) -> str:
    """The mesh with its sizes; as it was written where the machine cannot form it."""
    try:
        return str(MeshShape(**program.mesh_sizes()))
    except UserError:
        return str(program.mesh)


def candidates(program: Program, work: Work, machine: Topology | None = None) -> list[Candidate]:
    """Every setting of remat, micro-batches and mesh on the machine that fits by the estimate, the fastest first."""
    machine = machine or program.machine
    found = []
    for mesh in _meshes(program, machine):
        for micro in _divisors(program.batch.rows):
            for remat in REMATS:
                changed = _changed(program, machine, mesh, micro, remat)
                if changed is not None:
                    found.append(_candidate(changed, program, work))
    fitting = [one for one in found if one.used <= MARGIN * machine.chip.hbm]
    return sorted(fitting, key=lambda one: (one.seconds, one.changes, one.used))


def nearest(program: Program, work: Work) -> dict[str, Any] | None:
    """The setting that fits with the fewest changes, on this machine or else on the smallest larger one of its kind."""
    here = program.machine
    shapes = [f"{here.chip.name}:{shape}" for shape in here.chip.shapes]
    larger = [parse_topology(name, slices=here.slices) for name in shapes]
    larger = [one for one in larger if one.num_chips > here.num_chips]
    for machine in (here, *sorted(larger, key=lambda one: one.num_chips)):
        found = candidates(program, work, machine)
        if found:
            best = min(found, key=lambda one: (one.changes, one.seconds))
            return settings(best.program) | {"used": best.used, "had": machine.chip.hbm, "step": best.seconds}
    return None


def largest_rows(program: Program, used: float, had: float) -> int:
    """The most rows that fit when only they change: what is used now, and what the estimate adds for more rows.

    0 when not even the smallest batch that the mesh divides would fit.
    """
    part = program.row_shards * program.batch.micro
    now = estimate.memory(program).total

    def fits(parts: int) -> bool:
        batch = dataclasses.replace(program.batch, rows=parts * part)
        headed = program.headed * parts * part // program.batch.rows
        more = estimate.memory(dataclasses.replace(program, batch=batch, headed=headed)).total - now
        return used + more <= had

    low, high = 0, 1
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * part


def _candidate(changed: Program, program: Program, work: Work) -> Candidate:
    before, after = settings(program), settings(changed)
    return Candidate(
        program=changed,
        used=estimate.memory(changed).total,
        seconds=estimate.estimated(changed, work).step,
        changes=sum(before[name] != after[name] for name in before),
    )


def _changed(program: Program, machine: Topology, mesh: MeshShape, micro: int, remat: str) -> Program | None:
    """The program with other settings; None where rows, heads or parameters do not divide."""
    shape = dataclasses.replace(program.shape, remat=remat)
    batch = dataclasses.replace(program.batch, micro=micro)
    changed = dataclasses.replace(
        program, shape=shape, batch=batch, mesh=mesh, topology=machine.name, slices=machine.slices
    )
    if changed.problem is not None:
        return None
    return changed


def _meshes(program: Program, machine: Topology) -> list[MeshShape]:
    """Meshes over all chips, and the run's own."""
    dcn = machine.slices if machine.chip.is_tpu else 1
    inside = machine.num_chips // dcn
    found = []
    for tensor in _TENSOR:
        for sequence in _SEQUENCE:
            if inside % (tensor * sequence) == 0:
                fsdp = inside // (tensor * sequence)
                found.append(MeshShape(dcn=dcn, fsdp=fsdp, sequence=sequence, tensor=tensor))
    try:
        own = MeshShape(**dataclasses.replace(program, topology=machine.name, slices=machine.slices).mesh_sizes())
    except UserError:
        return found
    return found if own in found else [own, *found]


def _divisors(rows: int) -> list[int]:
    return [micro for micro in (1, 2, 4, 8, 16) if rows % micro == 0]
