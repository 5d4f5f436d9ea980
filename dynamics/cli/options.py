"""Options that several commands share, turned into settings."""

import argparse
import ast
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamics import config
from dynamics.errors import UserError

if TYPE_CHECKING:
    from dynamics.model.sharding import MeshShape
    from dynamics.study.grid import Study
    from dynamics.study.run import Run


def load_study(options: argparse.Namespace) -> "Study":
    """The study of the config file, with the command line's changes."""
    from dynamics.study.grid import Study

    study = config.load(options.config, function="study")
    if not isinstance(study, Study):
        raise UserError(f"{options.config}: study() returns {type(study).__name__}; return a dynamics.study.grid.Study")
    for assignment in getattr(options, "set", []):
        study = _assigned(study, assignment)
    own = {source for grid in study.grids() for source in (grid.run.source, *grid.sources)}

    def with_options(run: "Run") -> "Run":
        # What runs start after may have learned from other data, which the command line does not name.
        return dataclasses.replace(run, source=_source(run.source, options)) if run.source in own else run

    return study.map_runs(with_options)


def _assigned(study: "Study", assignment: str) -> "Study":
    """The study with one `field=value`; of several grids every one, where that means the same in all of them."""
    field = assignment.partition("=")[0].strip()
    changed = config.override(study, [assignment])
    if not study.plus or field in ("name", "measure_speedup"):
        return changed
    if not field.startswith("run.") and field not in ("seeds", "base_cells"):
        raise UserError(
            f"--set {assignment}: {study.name!r} has {len(study.grids())} grids, each with axes of its own; change "
            "them in the config file (run.FIELD, seeds and base_cells change in all grids alike)"
        )
    return dataclasses.replace(changed, plus=tuple(_assigned(grid, assignment) for grid in study.plus))


def load_run(options: argparse.Namespace) -> "Run":
    """The run of the config file, with the command line's changes."""
    from dynamics.study.run import Run

    run = config.override(config.load(options.config, function="run"), getattr(options, "set", []))
    if not isinstance(run, Run):
        raise UserError(f"{options.config}: run() returns {type(run).__name__}; return a dynamics.study.run.Run")
    return _with_source(run, run.source, options)


def _with_source(run: "Run", own: Any, options: argparse.Namespace) -> "Run":
    """The run, and those it starts after, with the command line's changes to the source where it is `own`."""
    from dynamics.study.run import After

    if isinstance(run.base, After):
        run = dataclasses.replace(run, base=After(run=_with_source(run.base.run, own, options)))
    return dataclasses.replace(run, source=_source(run.source, options)) if run.source == own else run


def function_of(path: str) -> str:
    """'run' for a config that has only that, else 'study', whose absence is told when it is loaded."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return "study"
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return "run" if "run" in names and "study" not in names else "study"


def _source(source: Any, options: argparse.Namespace) -> Any:
    """The source with --data-dir and --on-bad-record put in; an option that it has no use for is an error."""
    changes = {"data_dir": options.data_dir, "on_bad_record": options.on_bad_record}
    changes = {field: value for field, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(source)}
    for field in changes:
        if field not in known:
            option = "--" + field.replace("_", "-")
            raise UserError(
                f"{option} has no use here: the source {source.name!r} has no setting {field!r}; leave the option out"
            )
    return dataclasses.replace(source, **changes)


def mesh_shape(given: str) -> "MeshShape":
    """`data=4,fsdp=2` as a MeshShape."""
    from dynamics.model.sharding import MESH_AXES, MeshShape

    sizes: dict[str, int] = {}
    for word in given.split(","):
        axis, _, size = word.partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.removeprefix("-").isdigit():
            axes = ", ".join(MESH_AXES)
            raise UserError(f"--mesh {given}: give AXIS=NUMBER, each axis once, such as data=4,fsdp=2; axes: {axes}")
        sizes[axis] = int(size)
    return MeshShape(**sizes)
