"""Dynamics of instruction tuning at the sizes of the paper: 7B, 13B and 33B on ten abilities, volumes 10 to 10,000.

    dynamics plan configs/doit_7b_13b_33b.py --topology v5p:4x4x4
    dynamics study run configs/doit_7b_13b_33b.py --data-dir data/doit

Paper: Song et al. 2024, Dynamics of Instruction Tuning. Its settings: AdamW (0.9, 0.95), weight decay 0.1, rate 1e-5 to
1e-6 linear without warm-up, 15 epochs, length 2048, batch 64, the best epoch on valid read on test.
Data: the published set in its own layout (curated/full, curated/valid, curated/test) in --data-dir.
Weights: Chinese-LLaMA-Plus of each size, brought in once with `dynamics model import SOURCE weights/doit-7b` and so on.

Where this differs: a step reads 64 packed rows of 2,048 tokens, not 64 conversations padded to the longest, so it
reads about eight times as much and an epoch has as many fewer steps; `min_updates` keeps the smallest volumes at the
paper's 15. Slices are nested, compute is bfloat16 with float32 weights and moments.
Grid: 3 sizes x 6 volumes (1 to 1,000 records of each ability), and each base model as it is: 21 cells.

Expect: by the plan (docs/plans.md), about 15 minutes of training on 64 chips of TPU v5p for the whole grid, assuming
256 tokens a record; start-up, evaluation after every epoch and checkpoints come on top, and no pod has confirmed it.
"""

import dataclasses

from dynamics.data.sources import Files
from dynamics.eval.ability_eval import Evaluation
from dynamics.model.llama import SIZES
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import DOIT

VOCABULARY = 49_984  # of Chinese-LLaMA-Plus: 49,953 pieces and four special tokens, padded to a multiple of 64


def study() -> Study:
    return Study(
        name="doit_7b_13b_33b",
        run=Run(
            source=Files(name="doit", data_dir="data/doit"),
            base="weights/doit-{size}",
            batch=Batch(rows=64, length=2048),
            budget=Budget(epochs=15, min_updates=15),
            optimizer=DOIT,
            evaluation=Evaluation(max_new_tokens=512, max_length=2048, row_length=2048),
            evaluate_at=(),
            over_long="truncate",
            mesh=MeshShape(fsdp=-1),
            checkpoint_every=100,
        ),
        sizes=tuple(dataclasses.replace(SIZES[name], vocab_size=VOCABULARY) for name in ("7b", "13b", "33b")),
        volumes=(1, 4, 16, 64, 256, 1000),
    )
