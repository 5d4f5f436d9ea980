"""Conifer's ablation: the same conversations, their levels easy to hard, shuffled, hard to easy, or the hardest alone.

    dynamics plan configs/conifer/ablation.py --topology v5p:2x4x4 --estimate --tokens-per-record 1000
    dynamics study run configs/conifer/ablation.py --data-dir data/conifer

Paper: Sun et al. 2024, Conifer (arXiv 2404.02823). Everything but the arrangement of levels is as in sft.py, in this
folder, for Mistral-7B; what was published of it and what was not is said there. The arrangement is the study's axis of
sources: one folder, four ways to read it, under which feedback and ShareGPT stay as they are, and so do valid and test.
Grid: 4 arrangements x 3 seeds: 12 cells; the base model is scored in sft.py. The paper has one seed and no interval.

Published, IFEval (loose, by prompt) and FollowBench (mean of five levels, all constraints):

    easy to hard    50.8    44.9
    shuffled        48.6    44.1
    hard to easy    49.9    41.7
    hard only       48.2    43.4

Whether the published orders were compared over equal steps is not known. Here all are trained for three epochs of the
same number of conversations; "hard only" reads fewer tokens in them.

Expect: no pod has run it; about four times the minutes of one size of sft.py, which docs/conifer.md has. What comes of
it at tiny sizes is rehearsal.py's.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.study.grid import Study
from dynamics.study.run import Run

_SFT = runpy.run_path(str(Path(__file__).with_name("sft.py")))
ARRANGEMENTS = ("easy_to_hard", "shuffled", "hard_to_easy", "hard_only")


def arranged(run: Run) -> tuple:
    """The run's source in every arrangement of the ablation, each under its own name."""
    return tuple(
        dataclasses.replace(run.source, name=name.replace("_", " "), arrangement=name) for name in ARRANGEMENTS
    )


def study() -> Study:
    run: Run = _SFT["tuned"]()
    return Study(
        name="conifer_ablation",
        run=run,
        sources=arranged(run),
        seeds=_SFT["SEEDS"],
        base_cells=False,
        measure_speedup=False,
    )
