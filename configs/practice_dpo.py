"""Supervised fine-tuning, then learning from pairs, with three objectives, on the practice set.

    dynamics study run configs/practice_dpo.py

Data: the practice set, generated here; nothing is downloaded. A pair is a record's answer and a wrong one of its kind.
Grid: 3 objectives x 3 seeds, each seed after its own fine-tuned model, which is scored as it is too: 12 cells, 3 more
runs that they start after, and one base model.

Expect: 4 minutes on 2 CPU cores that were busy with other work too (173 CPU-seconds, base model included), 0 cells in
a few seconds when run again. Held-out pairs: DPO's loss falls from ln 2 = 0.693 to 0.61, the chosen reply gets the
higher reward in 67% (IPO 68%, SimPO 74%), and under DPO and IPO both replies become less likely, the rejected one more
so. The scores of the abilities do not move clearly: at most 2 points either way.
"""

import dataclasses

from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.losses.dpo import DPO, IPO
from dynamics.losses.simpo import SimPO
from dynamics.study.grid import Study
from dynamics.study.run import After, Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

BATCH = Batch(rows=8, length=128)


def study() -> Study:
    tuned = Run(
        source=Practice(num_valid=40),
        vocab_size=1024,
        volume=64,
        batch=BATCH,
        budget=Budget(epochs=4, min_updates=150),
        optimizer=PRACTICE,
        base=Base(tokens=1_000_000, batch=BATCH, optimizer=PRACTICE),
        evaluation=Evaluation(max_new_tokens=24, max_length=256, row_length=128),
        evaluate_at=(0.5, 1.0),
    )
    return Study(
        name="practice_dpo",
        run=dataclasses.replace(
            tuned,
            base=After(run=tuned),
            volume=64,
            budget=Budget(epochs=2),
            # A tenth of the rate of fine-tuning: the pairs move a model that already answers.
            optimizer=dataclasses.replace(PRACTICE, peak_lr=PRACTICE.peak_lr / 10),
            evaluate_at=(0.25, 0.5, 1.0),
        ),
        sizes=("0.2m",),
        objectives=(DPO(beta=0.1), IPO(beta=0.1), SimPO(beta=2.0, gamma=1.0)),
        seeds=(0, 1, 2),
        measure_speedup=False,
    )
