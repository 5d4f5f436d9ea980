"""Ten abilities against volume and size, in a few minutes: the study that `make study` runs.

    dynamics study run configs/practice.py

Data: the practice set, generated here; nothing is downloaded. Which curve each ability is made to show, and why, is
written in dynamics/data/practice/design.py.
Grid: 2 sizes x 5 volumes x 2 seeds, all ten abilities in every run, and the untuned base model of each size: 22 cells.

Expect: at most 6 minutes on 2 CPU cores, base models included, and 0 cells in a few seconds when run again.
"""

from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

BATCH = Batch(rows=8, length=128)


def study() -> Study:
    return Study(
        name="practice",
        run=Run(
            source=Practice(),
            vocab_size=1024,
            batch=BATCH,
            # Small volumes are passed over many times: what is compared is data, not the number of updates.
            budget=Budget(epochs=4, min_updates=150),
            optimizer=PRACTICE,
            base=Base(tokens=1_000_000, batch=BATCH, optimizer=PRACTICE),
            evaluation=Evaluation(max_new_tokens=24, max_length=256, row_length=128),
            evaluate_at=(0.5, 1.0),
        ),
        sizes=("0.2m", "0.6m"),
        volumes=(4, 16, 64, 256, 512),
        seeds=(0, 1),
    )
