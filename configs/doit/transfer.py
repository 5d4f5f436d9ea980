"""What training on one ability does for the others: 13B on 1,000 records of each of the ten abilities alone.

    dynamics plan configs/doit/transfer.py --topology v5p:2x4x4
    dynamics study run configs/doit/transfer.py --data-dir data/doit

Ours: the paper (Song et al. 2024, arXiv 2310.19651) asks how abilities differ and whether they carry over, and has no
such matrix; there are no scores to compare. Data, weights, training, choice and evaluation as in
configs/doit/curated.py; every model is scored on all ten abilities, and the report's matrix sets it against the base
model.
Grid: 1 size x 1 volume x 3 seeds x 10 abilities, and the base model as it is: 31 cells.

Expect: 29 minutes of training on 32 chips of TPU v5p for all 31 cells, by `dynamics plan --estimate` at 256 tokens a
record; evaluation after every epoch comes on top, and no pod has confirmed it.
"""

import runpy
from pathlib import Path

from dynamics.model.llama import LlamaConfig
from dynamics.study.grid import Study
from dynamics.study.run import Run


def grid(run: Run, *, sizes: tuple[str | LlamaConfig, ...], volume: int, seeds: tuple[int, ...]) -> Study:
    """Sizes x abilities, each trained on alone, x seeds."""
    return Study(
        name="doit_transfer", run=run, sizes=sizes, volumes=(volume,), seeds=seeds,
        ability_sets=tuple((ability,) for ability in run.source.abilities()), measure_speedup=False,
    )  # fmt: skip


def study() -> Study:
    curated = runpy.run_path(str(Path(__file__).with_name("curated.py")))
    return grid(curated["published"](), sizes=curated["sized"]("13b"), volume=1000, seeds=curated["SEEDS"])
