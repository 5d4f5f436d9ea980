"""Will it fit, how long does it take, what does it cost: every run of a study on machines that are not here.

A study's runs are few programs: those that differ in data, volume or seed share one. Each program is compiled for
each machine (or estimated), and each run is so many of its steps.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from dynamics import config
from dynamics.study import estimate, search
from dynamics.study.compiled import Compiled, Compiler
from dynamics.study.estimate import Roofline, Work
from dynamics.study.plan_jobs import Job, Jobs
from dynamics.study.program import Program
from dynamics.study.topologies import Topology
from dynamics.study.workload import Load

HOUR = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A program on a machine: does it fit, and how long is a step. Bytes are those of one chip."""

    program: Program
    compiled: Compiled | None  # None: estimated
    used: float
    had: float
    arguments: float | None  # None where the compiler refused before it knew
    temporaries: float | None
    roofline: Roofline

    @property
    def fits(self) -> bool:
        return self.used <= self.had if self.compiled is None else self.compiled.fits


def judge(program: Program, compiler: Compiler | None, label: str, work: Work) -> Verdict:
    """Compile the program, or estimate it where there is no compiler or the machine is of GPUs."""
    needs = estimate.memory(program)
    had = program.machine.chip.hbm
    flops = estimate.flops(program, work)
    if compiler is None or not program.machine.chip.is_tpu:
        return Verdict(
            program=program, compiled=None, used=needs.total, had=had, arguments=needs.arguments,
            temporaries=needs.temporaries, roofline=estimate.estimated(program, work),
        )  # fmt: skip
    compiled = compiler(program, label)
    if compiled.counts is None:
        line = estimate.estimated(program, work)
    else:
        kernels = flops.attention if compiled.counts.kernels else 0.0
        line = estimate.roofline(
            program,
            chip_flops=compiled.counts.matmul_flops + kernels / program.num_chips,
            wire_bytes=sum(one.wire_bytes for one in compiled.counts.traffic),
            network_bytes=sum(one.network_bytes for one in compiled.counts.traffic),
        )
    return Verdict(
        program=program, compiled=compiled, used=compiled.needed, had=compiled.had, arguments=compiled.arguments,
        temporaries=compiled.temporaries, roofline=line,
    )  # fmt: skip


def plan(
    jobs: Jobs,
    machines: Sequence[Topology],
    compiler: Compiler | None,
    *,
    prices: Mapping[str, float],
    searching: bool = False,
) -> dict[str, Any]:
    """Plain data: for each machine its programs, its cells, and the sums. `prices` are dollars a chip-hour by chip."""
    planned = [_on_machine(jobs, machine, compiler, prices.get(machine.chip.name), searching) for machine in machines]
    trained = [index for index, job in enumerate(jobs.jobs) if job.load is not None]
    nowhere = [i for i in trained if not any(one["cells"][i]["fits"] for one in planned)]
    return {
        "name": jobs.name,
        "cells": len(jobs.jobs),
        "counted": all(job.load.counted for job in jobs.jobs if job.load and job.coords["volume"] != "base"),
        "notes": list(jobs.notes),
        "matmul_efficiency": estimate.MATMUL_EFFICIENCY,
        "machines": planned,
        "cells_that_fit_nowhere": len(nowhere),
    }


def _on_machine(
    jobs: Jobs, machine: Topology, compiler: Compiler | None, price: float | None, searching: bool
) -> dict[str, Any]:
    groups = _programs(jobs, machine)
    rows, verdicts = [], {}
    for key, (program, members) in groups.items():
        heaviest = max(members, key=lambda job: job.load.steps if job.load else 0)
        assert heaviest.load is not None
        work = heaviest.load.work
        if program.problem is not None:
            rows.append(_refused_row(program, work, members))
            continue
        label = f"{program.shape.name} for {machine.label}"
        verdicts[key] = judge(program, compiler, label, work)
        rows.append(_program_row(verdicts[key], work, members))
        if searching:
            rows[-1]["search"] = _search_row(verdicts[key], compiler, label, work)
    cells = [_cell_row(job, machine, verdicts, price) for job in jobs.jobs]
    total = {name: sum(cell[name] for cell in cells if cell["fits"]) for name in ("steps", "hours", "chip_hours")}
    references = [cell["reference"]["hours"] for cell in cells if cell["fits"] and cell["reference"]]
    return {
        "topology": machine.label,
        "chip": machine.chip.name,
        "chips": machine.num_chips,
        "programs": rows,
        "cells": cells,
        "cells_that_fit": sum(cell["fits"] for cell in cells),
        **total,
        "reference_hours": sum(references),
        "price": price,
        "cost": None if price is None else total["chip_hours"] * price,
    }


def _key(job: Job) -> str:
    """The job's program but for what its data decide."""
    return config.fingerprint([job.shape, job.batch, job.objective, job.optimizer, job.mesh, job.adapter, job.pairs])


def _programs(jobs: Jobs, machine: Topology) -> dict[str, tuple[Program, list[Job]]]:
    """{key: (program, the jobs that run it)}: one program has room for the trained positions of all its jobs."""
    groups: dict[str, tuple[Program, list[Job]]] = {}
    for job in jobs.jobs:
        if job.load is None:
            continue
        program, key = job.program(machine), _key(job)
        if key in groups:
            other, members = groups[key]
            program = dataclasses.replace(program, headed=max(program.headed, other.headed))
            if program.pairs is not None and other.pairs is not None:
                room = max(program.pairs.number, other.pairs.number)
                program = dataclasses.replace(program, pairs=dataclasses.replace(program.pairs, number=room))
            groups[key] = (program, [*members, job])
        else:
            groups[key] = (program, [job])
    return groups


def _refused_row(program: Program, work: Work, members: Sequence[Job]) -> dict[str, Any]:
    """A program that the mesh cannot split: there is nothing to compile or to estimate."""
    return {
        "size": program.shape.name, "volumes": _volumes(members), "fits": False, "how": "not divisible",
        **search.settings(program), "refusal": f"{program.shape.name}: {program.problem}",
        "nearest": search.nearest(program, work),
    }  # fmt: skip


def _volumes(members: Sequence[Job]) -> list[str]:
    return sorted({str(job.coords["volume"]) for job in members})


def _program_row(verdict: Verdict, work: Work, members: Sequence[Job]) -> dict[str, Any]:
    program, compiled = verdict.program, verdict.compiled
    flops = estimate.flops(program, work)
    counts = None if compiled is None else compiled.counts
    row = {
        "size": program.shape.name,
        "volumes": _volumes(members),
        "fits": verdict.fits,
        "how": "estimated" if compiled is None else "compiled",
        **search.settings(program),
        "vocab_size": program.shape.vocab_size,
        "chips_used": program.num_chips,
        "memory": {
            "used": verdict.used, "had": verdict.had, "arguments": verdict.arguments,
            "temporaries": verdict.temporaries, "state": sum(program.state_bytes().values()),
            "estimated": estimate.memory(program).total,
        },
        "largest_rows": search.largest_rows(program, verdict.used, verdict.had) if _measured(verdict) else None,
        "flops": {
            "useful": flops.useful,
            "executed": flops.executed if counts is None else verdict.roofline.compute * _rate(program),
            "estimated": flops.executed,
            "xla_counts_once": None if compiled is None or compiled.xla_flops is None
            else compiled.xla_flops * program.num_chips,
        },
        "collectives": _collectives(program, counts),
        "roofline": _roofline_row(verdict.roofline),
        "mfu": _mfu(verdict, flops.useful),
        "compile_seconds": None if compiled is None else compiled.seconds,
    }  # fmt: skip
    if not verdict.fits:
        row["refusal"] = _refusal(verdict)
        row["nearest"] = search.nearest(program, work)
    return row


def _measured(verdict: Verdict) -> bool:
    """Whether `used` is the whole need: a refusal may name a part of it."""
    return verdict.compiled is None or verdict.compiled.fits


def _rate(program: Program) -> float:
    return program.machine.chip.peak * estimate.MATMUL_EFFICIENCY * estimate.precision(program) * program.num_chips


def _collectives(program: Program, counts: Any) -> list[dict[str, Any]]:
    if counts is None:
        found = estimate.traffic(program)
        return [
            {"kind": name, "times": None, "wire_bytes": wire, "network_bytes": network}
            for name, (wire, network) in found.items()
            if wire
        ]
    return [dataclasses.asdict(one) for one in counts.traffic]


def _roofline_row(line: Roofline) -> dict[str, Any]:
    return {**dataclasses.asdict(line), "step": line.step, "serial": line.serial, "bound": line.bound}


def _mfu(verdict: Verdict, useful: float) -> float:
    """Useful FLOPs over what the chips in use could do in the step's time."""
    program = verdict.program
    return useful / (verdict.roofline.step * program.machine.chip.peak * program.num_chips)


def _refusal(verdict: Verdict) -> str:
    gib = 2**30
    program = verdict.program
    return (
        f"{program.shape.name} needs {verdict.used / gib:,.1f} GiB and a chip of {program.machine.label} has "
        f"{verdict.had / gib:,.2f} GiB"
    )


def _cell_row(job: Job, machine: Topology, verdicts: Mapping[str, Verdict], price: float | None) -> dict[str, Any]:
    coords = {name: value for name, value in job.coords.items() if name != "rest"}
    if job.load is None:
        return {**coords, "fits": True, "steps": 0, "tokens": 0, "step_seconds": 0.0, "mfu": None, "hours": 0.0,
                "chip_hours": 0.0, "cost": None if price is None else 0.0, "reference": None}  # fmt: skip
    verdict = verdicts.get(_key(job))
    if verdict is None:
        return {**coords, "fits": False, "steps": job.load.steps, "tokens": round(job.load.tokens),
                "step_seconds": None, "mfu": None, "hours": None, "chip_hours": None, "cost": None,
                "reference": None}  # fmt: skip
    hours = job.load.steps * verdict.roofline.step / HOUR
    chip_hours = hours * machine.num_chips
    return {
        **coords,
        "fits": verdict.fits,
        "steps": job.load.steps,
        "tokens": round(job.load.tokens),
        "step_seconds": verdict.roofline.step,
        "mfu": _mfu(verdict, estimate.flops(verdict.program, job.load.work).useful),
        "hours": hours,
        "chip_hours": chip_hours,
        "cost": None if price is None else chip_hours * price,
        "reference": _reference_row(job.load, verdict),
    }


def _reference_row(load: Load, verdict: Verdict) -> dict[str, Any] | None:
    """The pass of the reference over all pairs, once before training; counted apart from the hours of the cell."""
    if load.reference is None:
        return None
    seconds = estimate.forward_seconds(verdict.roofline, load.work, load.reference)
    return {"pairs": load.num_reference, "tokens": round(load.reference.tokens), "hours": seconds / HOUR}


def _search_row(verdict: Verdict, compiler: Compiler | None, label: str, work: Work) -> dict[str, Any]:
    """The fastest setting of remat, micro-batches and mesh that fits, the first that the compiler confirms."""
    judged = functools.partial(judge, compiler=compiler, label=f"{label} (search)", work=work)
    tried = 0
    candidates = search.candidates(verdict.program, work)
    for candidate in candidates:
        tried += 1
        found = judged(candidate.program)
        if found.fits:
            return {
                "candidates": len(candidates), "tried": tried, **search.settings(candidate.program),
                "used": found.used, "had": found.had, "step": found.roofline.step, "bound": found.roofline.bound,
                "faster": verdict.roofline.step / found.roofline.step if verdict.fits else None,
            }  # fmt: skip
        if tried == search.MOST_COMPILED:
            break
    return {"candidates": len(candidates), "tried": tried}
