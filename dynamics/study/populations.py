"""Cells of one shape as a population: one compiled step trains them all, for accelerators and small models.

Everything but the training step is a cell's own: its data, its evaluations, its log, its choice, its folder, its claim.
Results equal those of cells run alone up to the rounding of differently ordered sums. Cells that learn from
preferences are no members: each is run alone.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from dynamics import config
from dynamics.errors import UserError
from dynamics.study.cell import Training
from dynamics.study.folder import CellFolder, StudyFolder, write_json
from dynamics.study.grid import Cell
from dynamics.study.jobs import make_stage, model_parameters, run_cell, write_failure
from dynamics.study.prepare import Workspace
from dynamics.study.run import is_preference
from dynamics.study.stage import adopt, stage_folder
from dynamics.train.log import Log
from dynamics.train.population import Member, TrainedPopulation, make_population_step, train_population

Ended = Callable[[str, Mapping[str, object]], None]  # told (cell id, end of its job)
Report = Callable[[str, float], None]  # told (cell id, fraction)

_PARAMETERS = 200_000_000  # of all members together: with gradients and moments a few GB
_MEMBERS = 64


def groups(cells: Sequence[Cell], workspace: Workspace) -> list[list[Cell]]:
    """The cells in populations: equal shapes, runs of similar length together, at most so many as memory likes."""
    shapes: dict[str, list[Cell]] = {}
    for cell in cells:
        run = cell.run
        parts = (workspace.model_shape(run), run.batch, run.optimizer, run.objective)
        if is_preference(run):  # alone: its batches are of pairs, which no population step reads
            parts = (*parts, cell.id)
        shapes.setdefault(config.fingerprint(parts), []).append(cell)
    populations = []
    for alike in shapes.values():
        size = max(1, min(_MEMBERS, _PARAMETERS // model_parameters(alike[0].run, workspace)))
        alike.sort(key=lambda cell: (-_volume(cell), cell.id))  # a member that is done waits for the longest
        populations += [alike[start : start + size] for start in range(0, len(alike), size)]
    return populations


def _volume(cell: Cell) -> float:
    """Of recipes and of 'full' only the data would tell; they come with the long ones."""
    run = cell.run
    return float("inf") if run.recipe is not None or run.volume == "full" else run.volume


def run_population(
    cells: Sequence[Cell], home: StudyFolder, workspace: Workspace, *, report: Report, ended: Ended
) -> None:
    """Run the cells together; `ended` is told how each one ended, busy ones (another process has them) at once."""
    with contextlib.ExitStack() as stack:
        members: list[tuple[Cell, CellFolder]] = []
        for cell in cells:
            folder = home.cell(cell.id)
            if not cell.run.trains or is_preference(cell.run):
                ended(cell.id, run_cell(cell, folder, workspace, lambda fraction: None))
            elif not stack.enter_context(folder.claim()):
                ended(cell.id, {"state": "busy"})
            elif folder.scores() is not None or adopt(cell, folder, stage_folder(cell.run, workspace)):
                ended(cell.id, {"state": "done", "ran": False})
            else:
                members.append((cell, folder))
        opened: list[tuple[Training, Log]] = []
        for cell, folder in members:
            try:
                opened.append(_open(cell, folder, workspace, report, stack))
            except Exception as error:
                ended(cell.id, write_failure(folder, error))
        if opened:
            _train(opened, ended)


def _open(
    cell: Cell, folder: CellFolder, workspace: Workspace, report: Report, stack: contextlib.ExitStack
) -> tuple[Training, Log]:
    make_stage(cell.run, workspace, lambda fraction: None)
    training = Training(cell, folder, workspace, lambda fraction: report(cell.id, fraction))
    if training.mesh is not None:
        raise UserError(
            "members of a population each live on one device; leave the run's mesh at 1, or use way=singles"
        )
    return training, stack.enter_context(_NotingLog(folder.path / "metrics.jsonl", training))


class _NotingLog(Log):
    """A member's log that also tells how far the member is."""

    def __init__(self, path: object, training: Training) -> None:
        super().__init__(str(path))
        self._training = training

    def write(self, step: int, values: Mapping[str, object]) -> None:
        super().write(step, values)
        self._training.note(step)


def _train(opened: Sequence[tuple[Training, Log]], ended: Ended) -> None:
    began = time.monotonic()
    trainings = [training for training, _ in opened]
    _share_rows(trainings)
    first = trainings[0].run
    devices = tuple(jax.devices()) if jax.default_backend() != "cpu" else (jax.devices()[0],)
    try:
        trained = train_population(
            [
                Member(
                    state=training.start(),
                    batches=training.batches(),
                    until=training.steps,
                    hooks=training.hooks(),
                    log=log,
                )
                for training, log in opened
            ],
            make_population_step(first.objective, first.optimizer, devices),
        )
    except Exception as error:
        for training in trainings:
            ended(training.cell.id, write_failure(training.folder, error))
        return
    seconds = (time.monotonic() - began) / len(trainings)
    for index, training in enumerate(trainings):
        ended(training.cell.id, {**_finish(training, trained, index), "seconds": seconds})


def _share_rows(trainings: Sequence[Training]) -> None:
    """Batches of one shape for all: members whose steps take fewer rows are given empty ones."""
    courses = [training.course for training in trainings if training.course is not None]
    rows = max(course.batches.plan.rows for course in courses)
    for training, course in zip(trainings, courses, strict=True):
        training.course = dataclasses.replace(course, batches=course.batches.with_rows(rows))


def _finish(training: Training, trained: TrainedPopulation, index: int) -> dict[str, object]:
    """Choose, read the test set, write the scores. A member's seconds are its equal share of the population's."""
    try:
        if index in trained.failures:
            raise UserError(trained.failures[index])
        share = len(trained.states)
        whole = trained.report
        report = dataclasses.replace(
            whole,
            seconds=whole.seconds / share,
            first_seconds=whole.first_seconds / share,
            wait_seconds=whole.wait_seconds / share,
            hook_seconds=whole.hook_seconds / share,
            save_seconds=whole.save_seconds / share,
        )
        write_json(training.folder.scores_file, training.finish(report))
    except Exception as error:
        return write_failure(training.folder, error)
    training.folder.clear_failure()
    training.folder.remove_checkpoints()
    return {"state": "done", "ran": True}
