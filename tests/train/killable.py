"""A real training run in a process of its own, to be killed: python -m train.killable FOLDER UNTIL."""

import sys
from pathlib import Path

from dynamics import tree
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.log import Log
from dynamics.train.loop import train
from dynamics.train.step import make_step
from train.tiny import OBJECTIVE, OPTIMIZER, fresh, open_batches, target


def run(folder: Path, until: int) -> str:
    """Train to the end from whatever is in the folder, saving after every step; the digest of the final state."""
    with Checkpointer(folder / "steps", config="killable") as checkpointer, Log(folder / "metrics.jsonl") as log:
        restored = checkpointer.restore_latest(target())
        assert not restored.walked_back, restored.walked_back
        print(f"at step {restored.step}", flush=True)
        state = fresh() if restored.state is None else restored.state
        trained = train(
            state, open_batches, make_step(OBJECTIVE, OPTIMIZER), until=until, checkpointer=checkpointer,
            save_every=1, log=log, on_metrics=lambda step, _: print(f"did step {step}", flush=True),
        )  # fmt: skip
    return tree.tree_digest(trained.state)


if __name__ == "__main__":
    print(f"digest {run(Path(sys.argv[1]), int(sys.argv[2]))}", flush=True)
