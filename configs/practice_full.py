"""The practice study at full length: the instrument whose results are kept in docs/ and checked against the design.

    dynamics study run configs/practice_full.py

The same data, base models and training as configs/practice.py, with a smaller third size, two more volumes and five
seeds: 3 sizes x 7 volumes x 5 seeds and three base models, 108 cells.

Expect: about 30 minutes on 2 CPU cores. Its results lie in docs/results/practice_full.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.study.grid import Study


def study() -> Study:
    short = runpy.run_path(str(Path(__file__).with_name("practice.py")))["study"]()
    return dataclasses.replace(
        short,
        name="practice_full",
        sizes=("0.1m", "0.2m", "0.6m"),
        volumes=(1, 4, 16, 64, 256, 512, 1024),
        seeds=(0, 1, 2, 3, 4),
    )
