"""How the cells of a study share a machine."""

from typing import Any, Literal

from dynamics.errors import UserError
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study
from dynamics.train.distributed import several

Way = Literal["auto", "workers", "vmap", "singles"]

_LARGEST_MEMBER = 20_000_000  # parameters; above it one run fills an accelerator by itself


def choose_way(way: Way, study: Study) -> Literal["workers", "vmap", "singles"]:
    """Workers on CPU; on an accelerator one vmapped step while members are small, else one run after another.

    Runs that need all devices for themselves (a mesh), or that are to go on from checkpoints of their own, which a
    population does not write, go one after another too. A way that cannot do what the run asks is a UserError.
    """
    if way not in ("auto", "workers", "vmap", "singles"):
        raise UserError(f"way={way!r}; allowed: auto, workers, vmap, singles")
    import jax

    platform = jax.default_backend()
    if way == "workers" and platform != "cpu":
        raise UserError(f"way='workers' pins processes to CPU cores, and JAX runs on {platform}; use vmap or singles")
    if several():
        if way in ("workers", "vmap"):
            raise UserError(
                f"way={way!r} shares one process's machine among runs, and this is one of several processes; use "
                "singles: one run after another on the devices of all of them"
            )
        return "singles"
    runs = [grid.run for grid in study.grids()]
    meshed = next((run.mesh for run in runs if run.mesh != MeshShape()), None)
    if way in ("workers", "vmap") and meshed:
        raise UserError(f"way={way!r} gives every run one device, and the run has {meshed}; use singles, or no mesh")
    saving = max(run.checkpoint_every for run in runs)
    if way == "vmap" and saving:
        raise UserError(
            f"way='vmap' writes no checkpoints inside a run, and checkpoint_every={saving}; use singles, or "
            "checkpoint_every=0"
        )
    if way != "auto":
        return way
    if meshed:
        return "singles"
    if platform == "cpu":
        return "workers"
    largest = max(_dense_parameters(size) for grid in study.grids() for size in (grid.sizes or (grid.run.size,)))
    alone = saving or any(run.adapter is not None for run in runs)  # each with a frozen model of its own
    return "vmap" if largest <= _LARGEST_MEMBER and not alone else "singles"


def _dense_parameters(size: Any) -> int:
    from dynamics import tree
    from dynamics.model.llama import SIZES, LlamaConfig, abstract

    return tree.num_parameters(abstract(size if isinstance(size, LlamaConfig) else SIZES[size]))
