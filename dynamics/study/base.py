"""Base models: pre-trained once for each size on the source's plain text, kept in the cache, shared by all cells."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynamics import config
from dynamics.errors import UserError
from dynamics.losses.sft import SFT
from dynamics.model.convert import is_model_folder, load_model, verify
from dynamics.model.llama import LlamaConfig, abstract, init
from dynamics.model.sharding import make_mesh, num_row_shards, shardings_for
from dynamics.seeds import name_hash, stream
from dynamics.study.cache import from_cache
from dynamics.study.course import device_batches, plan_course
from dynamics.study.folder import wait_for, write_json
from dynamics.study.identity import base_identity
from dynamics.study.prepare import Workspace
from dynamics.study.run import After, Base, Budget, Run, weights_folder
from dynamics.study.stage import parameters_folder
from dynamics.train.checkpoint import load_params, save_params
from dynamics.train.distributed import agree, check_mesh, check_shared, is_lead, placed, row_shards_here, several
from dynamics.train.loop import train
from dynamics.train.step import init_state, make_step

Report = Callable[[float], None]  # told the fraction that is done


def run_mesh(run: Run) -> Mesh | None:
    """The mesh of a run; None where it is one device, which needs no placement."""
    mesh = make_mesh(run.mesh)
    check_mesh(mesh)
    return None if mesh.size == 1 else mesh


def prefetch_depth() -> int:
    """Batches made ahead: none on CPU, where a thread would only take the model's core."""
    return 0 if jax.default_backend() == "cpu" else 4


def row_groups(mesh: Mesh | None) -> int:
    return 1 if mesh is None else num_row_shards(mesh)


def row_groups_here(mesh: Mesh | None) -> tuple[int, ...]:
    """The row groups that this process has the devices of."""
    return (0,) if mesh is None else row_shards_here(mesh)


def on_device(params: Any, mesh: Mesh | None = None) -> Any:
    """A copy for one run: the first step gives its parameters away, and the workspace's are used again."""
    if mesh is not None:
        return placed(params, shardings_for(params, mesh))
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def on_host(params: Any) -> Any:
    """A copy in host memory of its own."""
    return jax.tree.map(np.array, params)


def kept(params: Any) -> Any:
    """A copy that the next update does not touch: on the host, or, where it spans processes, on the devices."""
    return _copied(params) if several() else on_host(params)


@jax.jit
def _copied(params: Any) -> Any:
    return jax.tree.map(jnp.copy, params)


def first_model(run: Run, shape: LlamaConfig, workspace: Workspace, report: Report, mesh: Mesh | None) -> Any:
    """The model a run starts from, on its devices and its own to give away.

    A folder of weights, and what another run ended with, are read straight to where their parts belong; everything
    else passes through the host.
    """
    if isinstance(run.base, After):
        return load_model_parameters(parameters_folder(run, workspace), shape, mesh)
    folder = weights_folder(run)
    if folder is not None and is_model_folder(folder):
        _verify_once(folder, workspace)
        return load_model(folder, shape, mesh=mesh)
    if folder is not None:
        return load_model_parameters(folder, shape, mesh)
    return on_device(_first_parameters(run, shape, workspace, report), mesh)


def _first_parameters(run: Run, shape: LlamaConfig, workspace: Workspace, report: Report) -> Any:
    """On the host: the base model, or random parameters."""
    if isinstance(run.base, Base):
        return base_parameters(run, workspace, report)
    return on_host(init(shape, jax.random.key(name_hash("parameters", run.seed) % 2**32)))


def _verify_once(folder: Path, workspace: Workspace) -> None:
    """Compare the folder's tensors with its digests, which name the run; files that did not change since, only once."""
    if not is_lead():
        return
    files = sorted(folder.glob("*.safetensors"))
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    note = workspace.folder / "verified" / f"{config.fingerprint(state)}.json"
    if not note.exists():
        num_tensors = verify(folder)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"folder": str(folder), "tensors": num_tensors})


def load_model_parameters(folder: str | Path, shape: LlamaConfig, mesh: Mesh | None) -> Any:
    """The model of a folder of parameters, read straight to where its parts belong."""
    target = abstract(shape)
    if mesh is not None:
        target = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            target,
            shardings_for(target, mesh),
        )
    return load_params(folder, target)[0]


def base_folder(run: Run, workspace: Workspace) -> Path:
    return workspace.folder / "base" / config.fingerprint(_identity(run, workspace))


def base_is_ready(run: Run, workspace: Workspace) -> bool:
    """Whether the cache holds the run's base model, or the run needs none made."""
    return not isinstance(run.base, Base) or base_folder(run, workspace).is_dir()


def _identity(run: Run, workspace: Workspace) -> dict[str, Any]:
    return base_identity(run) | {"pieces": workspace.tokenizer(run).fingerprint}


def base_parameters(run: Run, workspace: Workspace, report: Report) -> Any:
    """The base model of the run's size, on the host; trained now when the cache does not have it."""
    folder = base_folder(run, workspace)
    shape = workspace.model_shape(run)
    name = f"base {folder.name}"
    if name not in workspace.memory:
        make = functools.partial(_pretrain, run, shape, workspace, folder, report)
        read = lambda: on_host(load_params(folder, abstract(shape))[0])  # noqa: E731 - as short as its name
        lock = folder.with_suffix(".lock")
        if several():
            workspace.memory[name] = _made_together(folder, lock, make, read)
        else:
            with wait_for(lock):
                workspace.memory[name] = from_cache(folder, make=make, read=read)
    return workspace.memory[name]


def _made_together(folder: Path, lock: Path, make: Callable[[], None], read: Callable[[], Any]) -> Any:
    """Several processes train the base model as they train a run; the lead holds the lock for all of them.

    A damaged one is an error here: setting it aside and making it anew is left to a run of one process.
    """
    if agree(str(folder)) != str(folder):
        raise UserError(
            f"the base model is {folder} here and another one in process 0: the processes read other data, settings or "
            "cache folders; give all of them the same"
        )
    check_shared(folder.parent)
    with wait_for(lock) if is_lead() else contextlib.nullcontext():
        if not agree(folder.exists()):
            make()
        return read()


def _pretrain(run: Run, shape: LlamaConfig, workspace: Workspace, folder: Path, report: Report) -> None:
    base = run.base
    assert isinstance(base, Base)
    store = workspace.corpus(run, length=base.batch.length)
    order = functools.partial(_shuffled, store.keys, base.seed)
    course = plan_course(store, order, budget=Budget(tokens=base.tokens), batch=base.batch)
    mesh = run_mesh(run)
    model = init(shape, jax.random.key(name_hash("base", base.seed) % 2**32))
    if several():
        model = on_device(on_host(model), mesh)
    trained = train(
        init_state(model, base.optimizer, total_steps=course.steps, mesh=mesh),
        device_batches(
            course,
            groups=row_groups(mesh),
            micro=base.batch.micro,
            prefetch=prefetch_depth(),
            mine=row_groups_here(mesh),
        ),
        make_step(SFT(), base.optimizer, mesh),
        until=course.steps,
        on_metrics=lambda step, _: report(step / course.steps),
    )
    identity = _identity(run, workspace)
    meta = {
        "steps": course.steps,
        "tokens": course.tokens,
        "epochs": course.epochs,
        "seconds": trained.seconds,
        "final_loss": trained.last["loss"],
        "wait_share": trained.wait_share,
    }
    if is_lead():
        write_json(folder.with_suffix(".json"), {"identity": identity, **meta, "shape": dataclasses.asdict(shape)})
    save_params(folder, trained.state.model, meta, config=config.fingerprint(identity))


def _shuffled(keys: list[str], seed: int, epoch: int) -> list[str]:
    return [keys[index] for index in stream(seed, "base", epoch).permutation(len(keys))]
