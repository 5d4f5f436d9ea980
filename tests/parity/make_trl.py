"""Make trl.npz: losses, metrics and gradients of TRL's trainers on the toy pairs of trl_losses.py.

python tests/parity/make_trl.py        (in the environment that `make parity` sets up)
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
import trl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from parity.trl_losses import trl_results  # noqa: E402


def main() -> None:
    found = trl_results()
    np.savez_compressed(HERE / "trl.npz", **found)
    size = (HERE / "trl.npz").stat().st_size
    versions = f"trl {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{len(found)} arrays, {size:,} bytes; {versions}")


if __name__ == "__main__":
    main()
