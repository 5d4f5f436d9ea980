"""The whole study of the paper at tiny sizes: every grid, table and figure, on generated records in DoIT's layout.

    dynamics study run configs/doit/rehearsal.py

Paper: Song et al. 2024, Dynamics of Instruction Tuning (arXiv 2310.19651). The grids are those of curated.py,
synthetic.py, mixtures.py and transfer.py in this folder, run through the same code with the same protocol: steps of 64
conversations, 15 epochs, valid after each, the best of the epochs after the fifth read on test once, greedy answers.
Data: the facts of the practice set in DoIT's schema, layout and proportions, every count a sixteenth; nothing is
downloaded, and no number here says anything about Chinese LLaMA (docs/guide/doit-data.md). Models of 0.1, 0.2 and 0.6
million parameters stand for 7B, 13B and 33B, pre-trained here on the practice corpus. The learning rate is theirs.

    curated     3 sizes x 6 volumes (10 to 620 records) x 3 seeds
    synthetic   2 sizes x 7 volumes (10 to 2,560 records) x 3 seeds
    mixtures    reconstruct, maximum, mix-160, mix-2560 x 3 seeds; CMMLU and AGIEval files, 0 and 5 shots
    transfer    each of ten abilities alone x 3 seeds

Expect: about 20 minutes on 2 CPU cores, base models included (31 measured beside other work, 31 CPU-minutes).
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.data.recipes import Maximum, Recipe, Reconstruct
from dynamics.data.rehearsal import DoitRehearsal
from dynamics.eval.ability_eval import Evaluation
from dynamics.eval.benchmarks import AgiEval, Benchmark, Cmmlu
from dynamics.model.llama import LlamaConfig
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

SCALE = 16
FIRST = 1000 // SCALE  # records of each ability in the first round of annotation, as published 1,000
VOLUMES = (1, 2, 4, 8, 16, FIRST)  # of each ability
SYNTHETIC_VOLUMES = (10, 20, 40, 80, 160, 10 * FIRST, 40_960 // SCALE)
SIZES = ("0.1m", "0.2m", "0.6m")
SEEDS = (0, 1, 2)
BENCHMARKS = (Cmmlu(data_dir="{data_dir}/cmmlu"), AgiEval(data_dir="{data_dir}/agieval"))


def recipes(scale: int) -> tuple[Recipe, ...]:
    """The mixtures of the paper, every number of records divided by `scale`."""
    first = 1000 // scale
    made = (
        Reconstruct(total=10 * first),
        Maximum(),
        Maximum(synthetic=2560 // scale),
        Maximum(synthetic=40_960 // scale),
    )
    few, capped = max(1, 64 // scale), (("creative_writing", first),)
    return tuple(dataclasses.replace(recipe, few=few, capped=capped) for recipe in made)


def rehearsed() -> Run:
    """The paper's protocol at practice size."""
    return Run(
        source=DoitRehearsal(scale=SCALE),
        vocab_size=1024,
        batch=Batch(documents=64, rows=64, length=128),
        budget=Budget(epochs=15),
        optimizer=PRACTICE,
        # Rows longer than in tuning: five-shot questions have up to 330 tokens.
        base=Base(tokens=1_000_000, batch=Batch(rows=3, length=384), optimizer=PRACTICE),
        evaluation=Evaluation(
            choice="generation", ties="correct", max_new_tokens=24, max_length=512, row_length=128
        ),
        evaluate_at=(),
        choose_after=5,
        over_long="truncate",
        keep_parameters=False,
    )  # fmt: skip


def study(
    run: Run | None = None,
    *,
    sizes: tuple[str | LlamaConfig, ...] = SIZES,
    volumes: tuple[int, ...] = VOLUMES,
    synthetic_volumes: tuple[int, ...] = SYNTHETIC_VOLUMES,
    benchmarks: tuple[Benchmark, ...] = BENCHMARKS,
    seeds: tuple[int, ...] = SEEDS,
) -> Study:
    """The four grids of the paper's configs in one folder; the arguments make smaller cuts of it."""
    run = run or rehearsed()
    curated, synthetic, mixtures, transfer = (
        runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
        for name in ("curated", "synthetic", "mixtures", "transfer")
    )
    middle = sizes[: max(1, len(sizes) - 1)][-1:]  # 13B where there are 7B, 13B and 33B
    grids = (
        synthetic["grid"](run, sizes=sizes[:2], volumes=synthetic_volumes, seeds=seeds),
        mixtures["grid"](
            run, sizes=sizes[:1], volume=volumes[-1], recipes=recipes(run.source.scale), benchmarks=benchmarks,
            seeds=seeds,
        ),
        transfer["grid"](run, sizes=middle, volume=volumes[-1], seeds=seeds),
    )  # fmt: skip
    whole = curated["grid"](run, sizes=sizes, volumes=volumes, seeds=seeds)
    return dataclasses.replace(whole, name="doit_rehearsal", plus=grids)
