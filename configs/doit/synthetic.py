"""The same with synthetic records: 7B and 13B on 10 to 40,960 records that a model wrote.

    dynamics plan configs/doit/synthetic.py --topology v5p:2x4x4
    dynamics study run configs/doit/synthetic.py --data-dir data/doit

Paper: Song et al. 2024, Dynamics of Instruction Tuning (arXiv 2310.19651), section 5, the synthetic curves of figure 2.
Data: synthetic/40960 of the published set (answers of GPT-4 to Chinese Alpaca instructions), valid and test as for the
human records; weights as in configs/doit/curated.py.
Grid: 2 sizes x 7 volumes x 3 seeds, and each base model as it is: 44 cells. Training, choice and evaluation as in
configs/doit/curated.py, and so are the differences.

One more: the synthetic records are of no ability, so a volume is of the whole set, where it is of each ability in
configs/doit/curated.py: set side by side, 10 synthetic records stand against 1 of each of ten abilities.
Scores to compare: no numbers are published; by figure 2 and the text they stay near the baseline of guessing and fall
after 2,560 records.

Expect: 239 minutes (4.0 hours) of training on 32 chips of TPU v5p for all 44 cells, by `dynamics plan --estimate` at
256 tokens a record; evaluation after every epoch comes on top, and no pod has confirmed it.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.data.doit import SYNTHETIC
from dynamics.model.llama import LlamaConfig
from dynamics.study.grid import Study
from dynamics.study.run import Run


def grid(run: Run, *, sizes: tuple[str | LlamaConfig, ...], volumes: tuple[int, ...], seeds: tuple[int, ...]) -> Study:
    """Sizes x records x seeds, on the synthetic part of the run's source."""
    source = dataclasses.replace(run.source, name=SYNTHETIC, part=SYNTHETIC)
    run = dataclasses.replace(run, source=source)
    return Study(name="doit_synthetic", run=run, sizes=sizes, volumes=volumes, seeds=seeds, measure_speedup=False)


def study() -> Study:
    curated = runpy.run_path(str(Path(__file__).with_name("curated.py")))
    volumes = (10, 40, 160, 640, 2560, 10_000, 40_960)
    return grid(curated["published"](), sizes=curated["sized"]("7b", "13b"), volumes=volumes, seeds=curated["SEEDS"])
