"""A study of the smallest possible shape, through the real code: three cells of a few steps. Runs from scripts too."""

import dataclasses
import sys
from pathlib import Path

from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.model.llama import LlamaConfig
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run

SIZE = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
    tied_head=True,
)  # fmt: skip
BATCH = Batch(rows=2, length=256)
RUN = Run(
    source=Practice(pool=8, num_valid=2, num_test=2, corpus_documents=120),
    size=SIZE,
    vocab_size=420,
    volume=2,
    batch=BATCH,
    budget=Budget(updates=4),
    base=Base(tokens=1500, batch=BATCH),
    evaluation=Evaluation(max_new_tokens=4, max_length=512, row_length=256, batch_tokens=1024, batch_size=16),
)
STUDY = Study(name="tiny", run=RUN, volumes=(1, 2), seeds=(0, 1), base_cells=True, measure_speedup=False)


def changed(run: Run, **fields: object) -> Run:
    return dataclasses.replace(run, **fields)


def main(folder: str, cache: str, updates: str) -> None:
    """Run the study one cell after another in this process, with more updates to leave time to be interrupted."""
    from dynamics.study.execution import run_study

    run = changed(RUN, budget=Budget(updates=int(updates)))
    study = dataclasses.replace(STUDY, run=run)
    done = run_study(study, folder, way="singles", cache=cache, on_progress=lambda view: print(view.done, flush=True))
    print(f"ran {done.ran}, skipped {done.skipped}, failed {dict(done.failed)}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:])
