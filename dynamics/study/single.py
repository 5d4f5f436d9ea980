"""One run without a study: train it in a folder of its own, and score a finished one again."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynamics import config
from dynamics.data.sources import ability_of_file, read_jsonl
from dynamics.errors import UserError
from dynamics.eval.ability_eval import evaluate_prepared, prepare
from dynamics.eval.scores import Overall, aggregate
from dynamics.model.sharding import MeshShape
from dynamics.record import Record
from dynamics.study.base import load_model_parameters, row_groups, run_mesh
from dynamics.study.checks import check_runs
from dynamics.study.folder import CellFolder, read_json
from dynamics.study.identity import source_fingerprint
from dynamics.study.jobs import run_cell
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run
from dynamics.study.stage import stage_cell
from dynamics.train.distributed import agree, is_lead


def train_run(
    run: Run, folder: str | Path, workspace: Workspace, report: Callable[[float], None]
) -> tuple[Path, dict[str, Any]]:
    """Train and evaluate a run in `folder`/<id>, going on from its newest checkpoint; returns its folder and scores.

    Lines of its source that gave no record are written to rejected.jsonl there. The parameters are kept, for
    `score_run` and whoever uses the model. A run that is done is not run again. The runs that it starts after are
    trained first where the cache does not have them.
    Raises UserError when the run fails for a reason of the user's or another process has it; before anything is trained
    when it, or a run that it starts after, asks for records or pairs that its source does not have.
    """
    check_runs([run], workspace)
    cell = stage_cell(run, workspace)
    home = CellFolder(Path(folder) / cell.id)
    end = run_cell(cell, home, workspace, report)
    if end["state"] == "busy":
        raise UserError(f"another process trains this run in {home.path}; wait for it or give another --output")
    if end["state"] == "failed":
        raise UserError(f"{end['reason']} (traceback in {home.failed_file})")
    if is_lead():
        workspace.write_rejected(home.path / "rejected.jsonl", [run])
    scores = agree(home.scores())
    assert scores is not None, "a run that ended as done has scores"
    return home.path, scores


def score_run(
    folder: str | Path,
    workspace: Workspace,
    *,
    split: str = "test",
    files: Sequence[str | Path] = (),
    shape: MeshShape | None = None,
) -> tuple[Overall, int]:
    """Scores of a finished run's parameters on its source's split or on record files of yours, and lines left out.

    `shape` is the mesh to score on (None: the one that the run was trained on).

    A file's ability is read off its place (math/test.jsonl, math_test.jsonl) where its records name none. A bad line of
    such a file is an error; a record that was there before, in this file or another, is left out and counted.

    Raises UserError when the folder is no run's, when the run kept no parameters (`keep_parameters=True` keeps them),
    and when its tokenizer, or the records of its split, are no longer those it was made with.
    """
    run, described = finished_run(folder, workspace)
    if not files:
        _check_same_records(folder, described, run)
    mesh = run_mesh(run if shape is None else dataclasses.replace(run, mesh=shape))
    model = load_model_parameters(Path(folder) / "parameters", workspace.model_shape(run), mesh)
    if not files:
        prepared, num_rejected = workspace.evaluation(run, split, row_shards=row_groups(mesh))
    else:
        records, num_rejected = _records_of(files)
        tokenizer = workspace.tokenizer(run)
        prepared = prepare(records, tokenizer, run.template, run.evaluation, row_shards=row_groups(mesh))
    return aggregate(evaluate_prepared(model, prepared, mesh=mesh)), num_rejected


def finished_run(folder: str | Path, workspace: Workspace) -> tuple[Run, dict[str, Any]]:
    """The settings of a run that kept its parameters, and all that its run.json says.

    Raises UserError when the folder is no run's or holds no parameters, and when the settings now give another
    tokenizer than the run was trained with: other ids would give numbers that mean nothing.
    """
    home = Path(folder)
    described = read_json(home / "run.json")
    if not isinstance(described, dict) or "run" not in described:
        raise UserError(f"{home} is not the folder of a run (no sound run.json); give one that `dynamics train` wrote")
    if not (home / "parameters").is_dir():
        raise UserError(f"{home} holds no parameters; run it with keep_parameters=True, or finish it first")
    run: Run = config.from_plain(described["run"])
    if described.get("tokenizer") != workspace.tokenizer(run).fingerprint:
        raise UserError(
            f"{home} was trained with tokenizer {described.get('tokenizer')}, but its settings now give "
            f"{workspace.tokenizer(run).fingerprint}; put the old tokenizer file or data back, or train again"
        )
    return run, described


def _check_same_records(folder: str | Path, described: dict[str, Any], run: Run) -> None:
    """A test set that the run may have been trained on would give scores that mean nothing."""
    then = described.get("identity", {}).get("source")
    if then != source_fingerprint(run.source):
        raise UserError(
            f"the records of source {run.source.name!r} have changed since {folder} was trained on them "
            f"(fingerprint {then}, now {source_fingerprint(run.source)}); put them back, or name files with --records"
        )


def _records_of(files: Sequence[str | Path]) -> tuple[list[Record], int]:
    """The different records of the files, and how many lines only repeat one."""
    records: dict[str, Record] = {}
    num_lines = 0
    for path in files:
        loaded = read_jsonl(path, ability=ability_of_file(path))
        num_lines += len(loaded.records) + len(loaded.rejected)
        for record in loaded.records:
            records.setdefault(record.id, record)
    return list(records.values()), num_lines - len(records)
