"""Base models: pre-trained once for each size on the source's plain text, kept in the cache, shared by all cells."""

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
from dynamics.losses.sft import SFT
from dynamics.model.llama import LlamaConfig, abstract, init
from dynamics.model.sharding import make_mesh, num_row_shards
from dynamics.seeds import name_hash, stream
from dynamics.study.cache import from_cache
from dynamics.study.course import device_batches, plan_course
from dynamics.study.folder import wait_for, write_json
from dynamics.study.prepare import Workspace
from dynamics.study.run import Base, Budget, Run, base_identity
from dynamics.train.checkpoint import load_params, save_params
from dynamics.train.loop import train
from dynamics.train.step import init_state, make_step

Report = Callable[[float], None]  # told the fraction that is done


def run_mesh(run: Run) -> Mesh | None:
    """The mesh of a run; None where it is one device, which needs no placement."""
    mesh = make_mesh(run.mesh)
    return None if mesh.size == 1 else mesh


def prefetch_depth() -> int:
    """Batches made ahead: none on CPU, where a thread would only take the model's core."""
    return 0 if jax.default_backend() == "cpu" else 4


def row_groups(mesh: Mesh | None) -> int:
    return 1 if mesh is None else num_row_shards(mesh)


def on_device(params: Any) -> Any:
    """A copy for one run: the first step gives its parameters away, and the workspace's are used again."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def on_host(params: Any) -> Any:
    """A copy in host memory of its own."""
    return jax.tree.map(np.array, params)


def first_parameters(run: Run, shape: LlamaConfig, workspace: Workspace, report: Report) -> Any:
    """The parameters a run starts from, on the host: its base model, a folder of parameters, or random ones."""
    if isinstance(run.base, Base):
        return base_parameters(run, workspace, report)
    if run.base is not None:
        return on_host(load_params(run.base, abstract(shape))[0])
    return on_host(init(shape, jax.random.key(name_hash("parameters", run.seed) % 2**32)))


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
        with wait_for(folder.with_suffix(".lock")):
            workspace.memory[name] = from_cache(
                folder,
                make=lambda: _pretrain(run, shape, workspace, folder, report),
                read=lambda: on_host(load_params(folder, abstract(shape))[0]),
            )
    return workspace.memory[name]


def _pretrain(run: Run, shape: LlamaConfig, workspace: Workspace, folder: Path, report: Report) -> None:
    base = run.base
    assert isinstance(base, Base)
    store = workspace.corpus(run, length=base.batch.length)
    order = functools.partial(_shuffled, store.keys, base.seed)
    course = plan_course(store, order, budget=Budget(tokens=base.tokens), batch=base.batch)
    mesh = run_mesh(run)
    model = init(shape, jax.random.key(name_hash("base", base.seed) % 2**32))
    trained = train(
        init_state(model, base.optimizer, total_steps=course.steps, mesh=mesh),
        device_batches(course, groups=row_groups(mesh), micro=base.batch.micro, prefetch=prefetch_depth()),
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
    write_json(folder.with_suffix(".json"), {"identity": identity, **meta, "shape": dataclasses.asdict(shape)})
    save_params(folder, trained.state.model, meta, config=config.fingerprint(identity))


def _shuffled(keys: list[str], seed: int, epoch: int) -> list[str]:
    return [keys[index] for index in stream(seed, "base", epoch).permutation(len(keys))]
