"""Ten abilities against volume and size, in a few minutes: the study that `make study` runs.

    dynamics study run configs/practice.py

Data: the practice set, generated here; nothing is downloaded. Design and known truth: dynamics/data/practice/design.py.
Grid: 2 sizes x 5 volumes x 2 seeds, all ten abilities in every run, and the untuned base model of each size.
"""

from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE


def study() -> Study:
    batch = Batch(rows=8, length=128)
    run = Run(
        source=Practice(pool=512, corpus_documents=20_000),
        vocab_size=1024,
        batch=batch,
        budget=Budget(epochs=4, min_updates=150),
        optimizer=PRACTICE,
        base=Base(tokens=1_000_000, batch=batch, optimizer=PRACTICE),
        evaluation=Evaluation(max_new_tokens=24, max_length=256, row_length=128),
        evaluate_at=(0.5, 1.0),
    )
    return Study(
        name="practice",
        run=run,
        sizes=("0.2m", "0.6m"),
        volumes=(4, 16, 64, 256, 512),
        seeds=(0, 1),
    )
