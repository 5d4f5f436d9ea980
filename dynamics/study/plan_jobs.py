"""What a config trains, as jobs: the steps of every run, of base models, and of runs that others start after."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dynamics import config
from dynamics.losses.preference import Preference
from dynamics.losses.sft import SFT
from dynamics.model.llama import LlamaConfig
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study, objective_name, start_name
from dynamics.study.prepare import Workspace
from dynamics.study.program import Pairs, Program
from dynamics.study.run import After, Base, Batch, Run, stages
from dynamics.study.topologies import Topology
from dynamics.study.workload import TRAINED_SHARE, Load, assumed_records, base_load, load_of, model_shape, readable
from dynamics.train.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is taken as given where the data do not say."""

    tokens_per_record: int
    vocab: int | None = None  # None: the tokenizer's where it can be read, else the size's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or the pre-training of a base model: settings of a step, and how many there are."""

    coords: dict[str, Any]
    shape: LlamaConfig
    batch: Batch
    objective: Any
    optimizer: Optimizer
    mesh: MeshShape
    adapter: Any
    load: Load | None  # None: nothing is trained
    pairs: Pairs | None = None  # of a run that learns from preferences; how many there is room for, the load says

    def program(self, machine: Topology) -> Program:
        """The step on a machine; on slices that only the network joins the model is copied to each, as dcn says."""
        mesh = self.mesh
        if machine.chip.is_tpu and machine.slices > 1 and mesh.dcn == 1:
            mesh = dataclasses.replace(mesh, dcn=machine.slices)
        batch = dataclasses.replace(self.batch, documents=None)  # which conversations a step reads is not compiled
        program = Program(
            shape=self.shape, batch=batch, headed=self.batch.rows * self.batch.length, objective=self.objective,
            optimizer=self.optimizer, mesh=mesh, adapter=self.adapter, topology=machine.name, slices=machine.slices,
            pairs=self.pairs,
        )  # fmt: skip
        if program.problem is not None:
            return program
        assert self.load is not None
        parts = program.row_shards * self.batch.micro
        rows = self.load.rows(self.batch, parts)
        program = dataclasses.replace(program, batch=dataclasses.replace(batch, rows=rows))
        split = (rows, program.row_shards, self.batch.micro)
        program = dataclasses.replace(program, headed=parts * self.load.cap(*split))
        if self.pairs is None or self.load.pair_cap is None:
            return program
        room = parts * self.load.pair_cap(*split)
        return dataclasses.replace(program, pairs=dataclasses.replace(self.pairs, number=room))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jobs:
    """All that a config trains, and what had to be assumed."""

    name: str
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]


def jobs_of(value: Study | Run, workspace: Workspace, assumptions: Assumptions) -> Jobs:
    """The jobs of a study or run. Data and tokenizers are read where they are there."""
    runs = value.runs() if isinstance(value, Study) else [value]
    first = {config.to_json(stage): stage for run in runs for stage in stages(run)}
    reasons = {run.source: readable(run) for run in (*runs, *first.values())}
    notes: dict[str, None] = {}
    for source, reason in reasons.items():
        if reason is not None:
            notes[
                f"data of {source.name!r} not read ({reason}); assumed: {assumptions.tokens_per_record} tokens a "
                f"record (--tokens-per-record), of which {TRAINED_SHARE:.0%} trained"
            ] = None
    jobs: dict[str, Job] = {}
    for run in (*first.values(), *runs):
        counted = reasons[run.source] is None
        shape = model_shape(run, workspace, counted=counted, vocab=assumptions.vocab)
        if not counted and assumptions.vocab is None:
            notes[f"tokenizer not read; vocabulary of {shape.name}: {shape.vocab_size:,} (--vocab)"] = None
        for job in _jobs(run, shape, workspace, counted=counted, tokens_per_record=assumptions.tokens_per_record):
            jobs.setdefault(config.fingerprint(job.coords), job)
    for run in runs:
        if run.recipe is not None and reasons[run.source] is not None:
            notes[
                f"records of {run.recipe.name!r}: {assumed_records(run):,}, computed from assumed counts "
                f"({_counts_from(run)})"
            ] = None
    if any(job.coords["volume"] == "base" for job in jobs.values()):
        notes["base models count in full, whether or not the cache holds them"] = None
    if first:
        notes["runs that others start after count in full, whether or not the cache holds them"] = None
    if any(job.load is not None and job.load.reference is not None for job in jobs.values()):
        notes["the reference is no model in memory: its log-probabilities are computed once before training, here "
              "taken as a third of a step for as many tokens"] = None  # fmt: skip
    if any(job.load is None for job in jobs.values()):
        notes["cells of volume 0 train nothing: they are not judged"] = None
    name = value.name if isinstance(value, Study) else f"run of {value.size_name}"
    return Jobs(
        name=name, jobs=tuple(jobs.values()), notes=(*notes, "evaluation, checkpoints and start-up not counted")
    )


def _jobs(
    run: Run, shape: LlamaConfig, workspace: Workspace, *, counted: bool, tokens_per_record: int
) -> Iterator[Job]:
    same = {"shape": shape, "mesh": run.mesh}
    where, plain = {"size": run.size_name, "source": run.source.name}, {"objective": "sft", "after": None}
    if isinstance(run.base, Base):
        yield Job(
            coords={**where, "volume": "base", "abilities": "all", "seed": run.base.seed, **plain},
            batch=run.base.batch,
            objective=SFT(), optimizer=run.base.optimizer, adapter=None, **same,
            load=base_load(run.base, tokens_per_record=tokens_per_record),
        )  # fmt: skip
    load = None
    if run.trains:
        load = load_of(run, workspace, counted=counted, tokens_per_record=tokens_per_record)
    volume = run.volume if run.recipe is None else run.recipe.name
    coords = where | {"volume": volume, "abilities": "+".join(run.abilities) or "all", "seed": run.seed}
    rest = {
        "order": run.order, "budget": run.budget, "batch": run.batch, "recipe": run.recipe,
        "objective": run.objective, "replies": run.replies, "after": run.base if isinstance(run.base, After) else None,
    }  # fmt: skip
    coords |= {"objective": objective_name(run.objective), "after": start_name(run) if stages(run) else None}
    yield Job(
        coords=coords | {"rest": config.fingerprint(rest)}, batch=run.batch, objective=run.objective,
        optimizer=run.optimizer, adapter=getattr(run, "adapter", None), load=load, pairs=_pairs(run), **same,
    )  # fmt: skip


def _pairs(run: Run) -> Pairs | None:
    if not isinstance(run.objective, Preference):
        return None
    sides = 3 if run.objective.needs_mismatched else 2
    return Pairs(number=run.batch.rows, sides=sides, shared_prompt=run.replies.shared_prompt)


def _counts_from(run: Run) -> str:
    if run.source.published_counts():
        return f"those published of {run.source.name!r}, less what is held out"
    return "the paper's Table 1 less 200 held out of each ability; 40,960 synthetic"
