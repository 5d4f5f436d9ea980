"""How much faster the workers together are than one run after another: the same steps, timed each way, in turns.

One after another is this process on all its cores, as a plain training script runs; the speed-up is over its rate. One
worker alone, pinned to its core, is timed as well: what a core does when the others are idle.
"""

import dataclasses
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from dynamics import config, tree
from dynamics.allocator import keep_freed_memory
from dynamics.losses.objective import Objective
from dynamics.losses.preference import Preference
from dynamics.model.llama import abstract, init
from dynamics.study.cell import plan_run
from dynamics.study.course import device_batches
from dynamics.study.grid import Study
from dynamics.study.prepare import Workspace
from dynamics.study.run import Budget, Run
from dynamics.study.workers import Worker, WorkerDied
from dynamics.train.loop import train
from dynamics.train.step import init_state, make_step

_MOST_STEPS = 100  # timed at a time
_TURN_SECONDS = 1.0  # about so long this process is timed in a turn
_TURNS = 5


def of_records(objectives: Sequence[Objective]) -> Iterator[Objective]:
    """The objectives whose steps are timed: preferences are left out, whose first step waits for a reference pass."""
    return (one for one in objectives if not isinstance(one, Preference))


def smallest_run(study: Study, workspace: Workspace) -> Run:
    """The run of the smallest size, with enough updates for the timing whatever its budget is."""
    sizes = study.sizes or (study.run.size,)
    volumes = [volume for volume in study.volumes if volume != 0] or [study.run.volume]
    objective = next(of_records(study.objectives or (study.run.objective,)))
    runs = [dataclasses.replace(study.run, size=size, volume=volumes[-1], objective=objective) for size in sizes]
    smallest = min(runs, key=lambda run: tree.num_parameters(abstract(workspace.model_shape(run))))
    return dataclasses.replace(smallest, budget=Budget(updates=_MOST_STEPS), checkpoint_every=0)


def time_steps(run: Run, workspace: Workspace, steps: int) -> dict[str, float]:
    """Train `steps` steps from random parameters as a cell does; {"steps", "seconds"} without the first step.

    The first step is left out: in a study it compiles once for hundreds of cells.
    """
    key = f"speed {config.fingerprint(run)}"
    if key not in workspace.memory:
        workspace.memory[key] = plan_run(run, workspace)[0]
    course = workspace.memory[key]
    model = init(workspace.model_shape(run), jax.random.key(0))
    state = init_state(model, run.optimizer, total_steps=course.steps)
    step = make_step(run.objective, run.optimizer, None)
    opened = device_batches(course, groups=1, micro=run.batch.micro, prefetch=0)
    trained = train(state, opened, step, until=min(steps, course.steps))
    return {"steps": trained.steps - 1, "seconds": trained.seconds - trained.first_seconds}


def measure_speedup(study: Study, pool: Sequence[Worker], workspace: Workspace) -> dict[str, Any]:
    """Model-steps a second of the workers together, of this process alone and of one worker alone.

    On the study's smallest size. They take turns, so that a busy machine burdens all alike; each rate is the median
    over the turns.
    """
    keep_freed_memory()  # as the workers do, and this process when it runs the cells itself
    run = smallest_run(study, workspace)
    message = {"kind": "speed", "run": config.to_plain(run), "cache": str(workspace.folder), "steps": 10}
    _all_at_once(pool, message)  # compiles
    first = time_steps(run, workspace, 10)
    message["steps"] = steps = max(10, min(_MOST_STEPS, round(first["steps"] / first["seconds"] * _TURN_SECONDS)))
    turns: dict[str, list[float]] = {"one_after_another": [], "one_worker_alone": [], "workers": []}
    for _ in range(_TURNS):
        here = time_steps(run, workspace, steps)
        turns["one_after_another"].append(here["steps"] / here["seconds"])
        turns["one_worker_alone"].append(_all_at_once(pool[:1], message))
        turns["workers"].append(_all_at_once(pool, message))
    rates = {name: statistics.median(each) for name, each in turns.items()}
    return {
        "size": run.size_name,
        "params": tree.num_parameters(abstract(workspace.model_shape(run))),
        "rows": run.batch.rows,
        "length": run.batch.length,
        "workers": len(pool),
        "steps_per_second": rates,
        "speedup": rates["workers"] / rates["one_after_another"],
        "turns": turns,
        "time": time.time(),
    }


def _all_at_once(pool: Sequence[Worker], message: dict[str, Any]) -> float:
    """Model-steps a second of all workers at the same time: the sum of their rates. Raises WorkerDied."""
    ends: list[dict[str, Any]] = []
    deaths: list[WorkerDied] = []

    def ask(worker: Worker) -> None:
        try:
            ends.append(worker.run(message, lambda event: None))
        except WorkerDied as death:
            deaths.append(death)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in pool]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if deaths:
        raise deaths[0]
    return sum(end["steps"] / end["seconds"] for end in ends)
