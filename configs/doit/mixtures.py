"""Mixtures made from what the curves say, and how they do out of domain: CMMLU and AGIEval at epochs 5, 10 and 15.

    dynamics plan configs/doit/mixtures.py --topology v5p:2x4x4
    dynamics study run configs/doit/mixtures.py --data-dir data/doit

Paper: Song et al. 2024, Dynamics of Instruction Tuning (arXiv 2310.19651), section 6, its tables 2 and 3.
Data: curated and synthetic/40960 of the published set in --data-dir, and beside that folder `cmmlu` (dev and test) and
`agieval` (the .jsonl sets and few_shot_prompts.csv); weights of 7B as in configs/doit/curated.py.
Grid: 7B x 5 mixtures x 3 seeds, and the base model as it is: 16 cells. Training, choice and evaluation as in
configs/doit/curated.py. The mixtures, computed from the counts of the files:

    baseline      1,000 records of each ability
    reconstruct   10,000: 64 of ethics and of role-play, at most 1,000 of creative writing, the rest shared equally by
                  the others, where biology gives all it has
    maximum       everything (about 40,000), but those three as in reconstruct; the code's mix-0 is the same
    mix-2560      maximum and 2,560 synthetic records
    mix-40960     maximum and all 40,960

Where this differs from the paper or its code, beside what configs/doit/curated.py says:
- the code writes 1,305 and 1,306 records an ability into reconstruct, which makes 10,000 only if biology has 1,041;
  here it follows from the counts.
- heads of files are taken as there; baseline and the synthetic records are drawn by content, there at random. Heads are
  the same records for all seeds, which then differ in the order of training alone.
- both means of AGIEval are reported, over examples and over sets: the paper does not say which it prints.
Letters are compared by their bare pieces, as published.
Scores to compare (7B; AGIEval 0-shot, CMMLU 0-shot, AGIEval 5-shot, CMMLU 5-shot, epoch 15):

    baseline      34.76  36.34  30.27  34.29
    reconstruct   35.18  36.76  32.65  35.79
    maximum       38.85  37.53  33.35  37.13
    mix-2560      39.88  37.74  34.00  36.46
    mix-40960     34.38  35.34  31.41  35.17

Expect: 274 minutes (4.6 hours) of training on 32 chips of TPU v5p for all 16 cells, by `dynamics plan --estimate` at
256 tokens a record and assumed counts; evaluation comes on top, and no pod has confirmed it.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.data.recipes import Maximum, Recipe, Reconstruct
from dynamics.eval.benchmarks import AgiEval, Benchmark, Cmmlu
from dynamics.model.llama import LlamaConfig
from dynamics.study.grid import Study
from dynamics.study.run import Run

RECIPES = (Reconstruct(), Maximum(), Maximum(synthetic=2560), Maximum(synthetic=40_960))
BENCHMARKS = (Cmmlu(data_dir="{data_dir}/../cmmlu"), AgiEval(data_dir="{data_dir}/../agieval"))


def grid(
    run: Run,
    *,
    sizes: tuple[str | LlamaConfig, ...],
    volume: int,
    recipes: tuple[Recipe, ...],
    benchmarks: tuple[Benchmark, ...],
    seeds: tuple[int, ...],
) -> Study:
    """The baseline of `volume` records of each ability, and a grid for each recipe on the part that it draws from."""
    run = dataclasses.replace(run, benchmarks=benchmarks, benchmark_at=(1 / 3, 2 / 3, 1.0))
    baseline = Study(
        name="doit_mixtures", run=run, sizes=sizes, volumes=(volume,), seeds=seeds, measure_speedup=False
    )  # fmt: skip
    return dataclasses.replace(baseline, plus=tuple(_mixed(baseline, recipe) for recipe in recipes))


def _mixed(baseline: Study, recipe: Recipe) -> Study:
    part = "mixed" if getattr(recipe, "synthetic", 0) else "full"
    source = dataclasses.replace(baseline.run.source, name=part, part=part)
    # The base model is scored once, with the baseline: the parts share valid and test.
    return dataclasses.replace(
        baseline, run=dataclasses.replace(baseline.run, source=source, recipe=recipe), volumes=(), base_cells=False
    )


def study() -> Study:
    curated = runpy.run_path(str(Path(__file__).with_name("curated.py")))
    return grid(
        curated["published"](), sizes=curated["sized"]("7b"), volume=1000, recipes=RECIPES, benchmarks=BENCHMARKS,
        seeds=curated["SEEDS"],
    )  # fmt: skip
