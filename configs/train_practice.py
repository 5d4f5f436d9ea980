"""One run on the practice set: 256 records of each ability, the 0.2m model from its base.

    dynamics train configs/train_practice.py --output results/train

The numbers are those of the study of configs/practice.py, whose cell it is.

Expect: about 2 minutes on 2 CPU cores, base model included; most abilities above chance.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.study.run import Run


def run() -> Run:
    study = runpy.run_path(str(Path(__file__).with_name("practice.py")))["study"]()
    return dataclasses.replace(study.run, size="0.2m", volume=256, seed=0)
