"""Does the order of the records matter? Seven orders of the same records of the practice set, each with several seeds.

    dynamics data order configs/practice_orders.py --out orders.png      what comes when, before anything is trained
    dynamics study run configs/practice_orders.py

Data, base model and optimizer as in configs/practice.py. How hard a record is says the base model: the mean loss of the
reply before any tuning (Hacohen and Weinshall 2019), computed once for all seeds and kept in the cache. It differs more
between abilities than within them, so sorting all records is nearly one ability after another; one order sorts within
each ability and keeps the abilities even.

Every cell reads the same number of tokens, about two passes, so that an order with replays reads no more than one
without; a seed draws the same records for every order, so that orders are compared within seeds.

Grid: 1 size x 1 volume x 7 orders x 5 seeds, and the base model: 36 cells.
Expect: 12 min 25 s on 2 CPU cores beside other work (measured); about 7 minutes on an idle machine (estimated).
"""

from dynamics.data.curriculum import Paced, Sorted, Staged
from dynamics.data.difficulty import ModelLoss
from dynamics.data.mixture import Interleaved, Shuffled
from dynamics.data.pacing import Root
from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

BATCH = Batch(rows=8, length=128)
BY = ModelLoss()


def study() -> Study:
    return Study(
        name="practice_orders",
        run=Run(
            source=Practice(),
            size="0.2m",
            vocab_size=1024,
            volume=256,
            batch=BATCH,
            budget=Budget(tokens=150_000),
            optimizer=PRACTICE,
            base=Base(tokens=1_000_000, batch=BATCH, optimizer=PRACTICE),
            evaluation=Evaluation(max_new_tokens=24, max_length=256, row_length=128),
            evaluate_at=(0.5, 1.0),
        ),
        orders=(
            Shuffled(),
            Interleaved(),
            Sorted(by=BY),
            Sorted(by=BY, within_abilities=True),
            Sorted(by=BY, hardest_first=True),
            Staged(by=BY, stages=4, replay=0.2),
            Paced(by=BY, pacing=Root(start=0.1)),
        ),
        seeds=(0, 1, 2, 3, 4),
        measure_speedup=False,
    )
