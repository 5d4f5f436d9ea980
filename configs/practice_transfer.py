"""What training on one ability does for the others: the practice set's ten abilities, each trained on alone.

    dynamics study run configs/practice_transfer.py

Data, base model and training as in configs/practice.py; every cell trains on 512 records of one ability and is scored
on all ten. The report's transfer matrix sets each against the base model before tuning. By design math and code share
the times table, so each must lift the other; see docs/design/practice-set.md.

Grid: 1 size x 1 volume x 3 seeds x 10 ability sets, and the base model: 31 cells.
Expect: about 5 minutes on 2 CPU cores.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.study.grid import Study


def study() -> Study:
    short = runpy.run_path(str(Path(__file__).with_name("practice.py")))["study"]()
    return dataclasses.replace(
        short,
        name="practice_transfer",
        sizes=("0.6m",),
        volumes=(512,),
        seeds=(0, 1, 2),
        ability_sets=tuple((ability,) for ability in short.run.source.abilities()),
        measure_speedup=False,
    )
