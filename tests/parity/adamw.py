"""Two updates of a toy model as torch's AdamW makes them: the settings, the batches, and torch's side of it.

The first update sees one micro-batch, the second adds up two of unequal weight. Shared by the script that makes the
golden file and by the live test; torch is imported only where it is used.
"""

from pathlib import Path
from typing import Any

import numpy as np

from parity.toys import CONFIGS

CONFIG = CONFIGS["llama2_grouped"] | {"num_hidden_layers": 1}
LENGTH = 16

# eps is larger than usual on purpose. Adam divides a gradient by its own size plus eps, so with a small eps the
# rounding of a gradient that is almost zero decides between a whole step up and a whole step down, and two correct
# programs differ. eps=1e-4 is a thousand times that rounding, and small beside most gradients.
LR, BETAS, EPS, DECAY, CLIP = 1e-2, (0.9, 0.95), 1e-4, 0.1, 1.0


def batches() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For each update its micro-batches: tokens [1, length], and weights [1, length] of predicting the next one."""
    rng = np.random.default_rng(5)
    found = []
    for counts in ((11,), (13, 3)):
        micro_batches = []
        for count in counts:
            weights = np.zeros((1, LENGTH), np.float32)
            weights[0, rng.permutation(LENGTH - 1)[:count]] = 1.0
            micro_batches.append((rng.integers(0, CONFIG["vocab_size"], (1, LENGTH)).astype(np.int32), weights))
        found.append(micro_batches)
    return found


def torch_updates(folder: Path) -> list[dict[str, np.ndarray]]:
    """The parameters after each update, by their Hugging Face names."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if "norm" not in name], "weight_decay": DECAY},
        {"params": [p for name, p in named.items() if "norm" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    after = []
    for micro_batches in batches():
        total = float(sum(weights.sum() for _, weights in micro_batches))
        optimizer.zero_grad()
        for tokens, weights in micro_batches:
            ids = torch.from_numpy(tokens).long()
            logprobs = torch.log_softmax(model(ids).logits[:, :-1].float(), dim=-1)
            gold = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
            (-(gold * torch.from_numpy(weights[:, :-1])).sum() / total).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        assert norm > CLIP, "clipping is to be tested too"
        optimizer.step()
        after.append({name: p.detach().numpy().copy() for name, p in named.items()})
    return after
