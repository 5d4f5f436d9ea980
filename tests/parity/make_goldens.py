"""Make goldens.npz: the logits of transformers for the toy models. Run where torch and transformers are installed.

    python tests/parity/make_goldens.py        (in the environment that `make parity` sets up)

Weights come from a seed (`toys.py`), so the file holds logits alone.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from parity.toys import CONFIGS, tokens, write_toy  # noqa: E402


def logits(folder: Path, ids: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """[rows, length, vocabulary] of transformers' model, computed in `dtype`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.float().numpy()


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for name, config in CONFIGS.items():
            folder = write_toy(Path(home) / name, config)
            found[f"{name}/float32"] = logits(folder, tokens(config), torch.float32)
            if config["torch_dtype"] == "bfloat16":
                # Every logit is a bfloat16 number: half of its bytes are zeros, and the file compresses them.
                found[f"{name}/bfloat16"] = logits(folder, tokens(config), torch.bfloat16)
    np.savez_compressed(HERE / "goldens.npz", **found)
    size = (HERE / "goldens.npz").stat().st_size
    print(f"{len(found)} arrays, {size:,} bytes; torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
