"""Make adamw.npz: the parameters of a toy model after two updates of torch.optim.AdamW.

python tests/parity/make_adamw.py        (in the environment that `make parity` sets up)
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from parity.adamw import CONFIG, torch_updates  # noqa: E402
from parity.toys import write_toy  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        after = torch_updates(write_toy(Path(home) / "toy", CONFIG))
    found: dict[str, Any] = {
        f"{number}/{name}": array for number, arrays in enumerate(after) for name, array in arrays.items()
    }
    np.savez_compressed(HERE / "adamw.npz", **found)
    size = (HERE / "adamw.npz").stat().st_size
    print(f"{len(found)} arrays, {size:,} bytes; torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
