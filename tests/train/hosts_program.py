"""A training run as one process of several: python -m train.hosts_program FOLDER MESH UNTIL [--pause S] [host flags].

Says on standard output what it restored, each step it made, and the digest of its last state, the same in all.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynamics import tree
from dynamics.cli.stopping import together
from dynamics.data.batches import compact
from dynamics.model.sharding import MeshShape, make_mesh, num_row_shards
from dynamics.train import digest, distributed
from dynamics.train.checkpoint import Checkpointer, load_params, save_params
from dynamics.train.log import Log
from dynamics.train.loop import Interrupted, train
from dynamics.train.step import init_state, make_step
from train import tiny


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def state_digest(state: object) -> str:
    """One digest of a state that may lie on several processes; all of them call this together."""
    found = digest.digests(tree.named_leaves(state))
    return " ".join(digest.text(value) for value in found.values())


def my_batches(mesh, pause: float, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches in which this process has filled in only the rows of its own devices."""
    groups, mine = num_row_shards(mesh), distributed.row_shards_here(mesh)
    for step in range(start, stop):
        time.sleep(pause)
        rows = tiny.host_batch(0, step)
        share = tiny.ROWS // groups
        parts = [{name: value[g * share : (g + 1) * share] for name, value in rows.items()} for g in mine]
        cap = share * tiny.LENGTH
        compacted = [compact(part, groups=1, cap=cap) for part in parts]
        yield {name: np.concatenate([part[name] for part in compacted], axis=1) for name in compacted[0]}


def run(folder: Path, mesh, until: int, pause: float) -> None:
    distributed.check_mesh(mesh)
    distributed.check_shared(folder)
    log = Log(folder / "metrics.jsonl") if distributed.is_lead() else None
    with Checkpointer(folder / "steps", config="hosts", keep=3) as checkpointer:
        found = checkpointer.restore_latest(tiny.target(mesh))
        say(restored=found.step, walked_back=found.walked_back)
        state = found.state
        if state is None:
            state = init_state(tree_on_host(), tiny.OPTIMIZER, total_steps=20, mesh=mesh)
        trained = train(
            state, lambda start, stop: my_batches(mesh, pause, start, stop),
            make_step(tiny.OBJECTIVE, tiny.OPTIMIZER, mesh), until=until, checkpointer=checkpointer, save_every=2,
            log=log, on_metrics=lambda step, values: say(did=step, loss=values["loss"]), lag=0,
        )  # fmt: skip
    save_params(folder / "final", trained.state.model, {"until": until}, config="hosts")
    params, manifest = load_params(folder / "final", tiny.target(mesh).model)
    assert manifest.meta == {"until": until}
    say(digest=state_digest(trained.state), params=state_digest(trained.state.model), read_back=state_digest(params))


def tree_on_host():
    return tiny._drawn(0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mesh", type=lambda text: MeshShape(**json.loads(text)))
    parser.add_argument("until", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()
    try:
        with together(options):
            run(options.folder, make_mesh(options.mesh), options.until, options.pause)
    except Interrupted as stop:
        say(stopped=stop.step)
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
