"""Volume and size with the human records of DoIT: 7B, 13B and 33B on 10 to 10,000 records of ten abilities.

    dynamics plan configs/doit/curated.py --topology v5p:2x4x4
    dynamics study run configs/doit/curated.py --data-dir data/doit

Paper: Song et al. 2024, Dynamics of Instruction Tuning (arXiv 2310.19651), sections 4 and 5, its figure 2.
Data: the published set in its own layout (curated/1000, curated/valid, curated/test) in --data-dir.
Weights: Chinese-LLaMA-Plus of each size, brought in once with `dynamics model import SOURCE weights/doit-7b` and so on.
Grid: 3 sizes x 6 volumes (1 to 1,000 records of each ability) x 3 seeds, and each base model as it is: 57 cells.

As published: AdamW (0.9, 0.95), weight decay 0.1, rate 1e-5 to 1e-6 linear without warm-up; 15 epochs of steps of 64
conversations, so 15, 15, 45, 150, 600 and 2,355 steps; conversations cut at 2,048 tokens; valid after every epoch, the
best of the epochs after the fifth read on test, once; greedy answers of at most 1,024 tokens with the fallback to the
letters' logits, ties of perplexities counted as correct, texts cut at 2,048 tokens.

Where this differs from the paper or its code, and why:
- three seeds for one; every score has an interval.
- slices are nested and drawn by content; the code draws a new sample for each volume, in the order of the file system.
- the code's extra epochs for small volumes never run (a name is split at the wrong character): 15 for all, as it ran.
- optimizer as the paper and train_sft.py say; the code's DeepSpeed file may have overruled betas and schedule.
- the loss is the mean over all tokens of a step; the code averages the means of its 8 devices.
- the last step of an epoch reads what is left; the code's sampler repeats records until 8 devices have equally many.
- conversations are packed into rows that attend to themselves alone; the code pads each on the left. The same numbers
  but for rounding. A run takes as few rows as hold its fullest step, at most 32; it says so before it begins where that
  is not enough.
- bfloat16 with float32 weights and moments; the code trains in float16.
- the overall score is the mean of abilities; the code's divides by twice their number. Nothing is smoothed.
- answers are read by our rules; `--set run.evaluation.rules=published` reads them as the code does, mistakes included.
Scores to compare: the paper has no numbers for these curves, only figure 2 (its overall panel shows half the mean) and
what it says of them: code, biology, history and creative writing grow with data and size, understanding and reasoning
with data alone, ethics and role-play with neither.

Expect: 156 minutes (2.6 hours) of training on 32 chips of TPU v5p for all 57 cells, by `dynamics plan --estimate` at
256 tokens a record; evaluation after every epoch comes on top, and no pod has confirmed it. No cell keeps its
parameters, which would be 4 TB: `--set run.keep_parameters=true` does.
"""

import dataclasses

from dynamics.data.doit import Doit
from dynamics.eval.settings import PUBLISHED
from dynamics.model.llama import SIZES, LlamaConfig
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import DOIT

VOCABULARY = 49_984  # of Chinese-LLaMA-Plus: 49,953 pieces and four special tokens, padded to a multiple of 64
SEEDS = (0, 1, 2)


def sized(*names: str) -> tuple[LlamaConfig, ...]:
    """The paper's models: LLaMA shapes with the vocabulary of Chinese-LLaMA-Plus."""
    return tuple(dataclasses.replace(SIZES[name], vocab_size=VOCABULARY) for name in names)


def published() -> Run:
    """The paper's settings, on the first thousand records of each ability."""
    return Run(
        source=Doit(data_dir="data/doit"),
        size=sized("7b")[0],
        base="weights/doit-{size}",
        batch=Batch(documents=64, rows=32, length=2048),
        budget=Budget(epochs=15),
        optimizer=DOIT,
        # The published test, but for its mistakes in reading answers.
        evaluation=dataclasses.replace(
            PUBLISHED, rules="ours", row_length=2048, batch_tokens=131_072, batch_size=128
        ),
        evaluate_at=(),
        choose_after=5,
        over_long="truncate",
        mesh=MeshShape(fsdp=-1, tensor=2),
        checkpoint_every=100,
        keep_parameters=False,
    )  # fmt: skip


def grid(run: Run, *, sizes: tuple[str | LlamaConfig, ...], volumes: tuple[int, ...], seeds: tuple[int, ...]) -> Study:
    """Sizes x records of each ability x seeds."""
    return Study(name="doit_curated", run=run, sizes=sizes, volumes=volumes, seeds=seeds, measure_speedup=False)


def study() -> Study:
    return grid(published(), sizes=sized("7b", "13b", "33b"), volumes=(1, 4, 16, 64, 256, 1000), seeds=SEEDS)
