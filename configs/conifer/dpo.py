"""Conifer's second stage: direct preference optimization on UltraFeedback, from the fine-tuned Mistral-7B.

    dynamics plan configs/conifer/dpo.py --topology v5p:2x4x4 --estimate --set run.volume=58000
    dynamics study run configs/conifer/dpo.py

Paper: Sun et al. 2024, Conifer (arXiv 2404.02823). Data: `dynamics data fetch ultrafeedback --data-dir data`, and those
of sft.py beside it, in data/. The first stage is sft.py's Mistral-7B of the same seed: trained first where it is not
there yet, and taken from that study's folder where it is. Grid: 3 seeds, and each seed's first stage as it is.

What is [known], an [anchor] (here the alignment handbook's recipe for Zephyr's preferences, whose code the authors
used) and [ours] is marked as in sft.py:

    DPO after SFT, on UltraFeedback            [known]; the binarized set of the handbook is the [anchor]
    beta 0.01                                  [anchor]
    rate 5e-7, cosine to 0, warm-up 0.1        [anchor]
    1 epoch                                    [anchor]
    1,024 tokens of prompt and reply, 512 of the prompt, longer ones cut      [anchor]
    batches of 128 pairs                       [ours]: the recipe's are 8 a device x 2 x the number of devices, 128 on 8
    AdamW (0.9, 0.999), no decay, clip 1       [ours]: defaults of that trainer
    template, types, seeds, mesh               as in sft.py
    5 % of the prompts valid                   [ours]: the set has train and test

Log-probabilities are sums over a reply, as in the paper of DPO. Those of the reference, the first stage, are computed
once before training. A pair lies in a row once, its prompt shared by both replies, which is the same loss.

Expect: no pod has run it. docs/conifer.md has the minutes of training and chip-hours by the plan; the pass for the
reference and the first stage come on top.
"""

import dataclasses
import runpy
from pathlib import Path

from dynamics.data.pair_files import PublishedPairs
from dynamics.data.replies import Replies
from dynamics.losses.dpo import DPO
from dynamics.study.grid import Study
from dynamics.study.run import After, Batch, Budget, Run

_SFT = runpy.run_path(str(Path(__file__).with_name("sft.py")))
SEEDS = _SFT["SEEDS"]


def preferred() -> Run:
    """The second stage of one seed."""
    sft: Run = _SFT["tuned"]()
    return dataclasses.replace(
        sft,
        source=PublishedPairs(name="ultrafeedback", entry="ultrafeedback", data_dir="data", valid_share=0.05),
        recipe=None,
        volume="full",
        base=After(run=sft),
        objective=DPO(beta=0.01),
        replies=Replies(max_prompt=512, max_length=1024),
        batch=Batch(documents=128, rows=128, length=2048, micro=4),
        budget=Budget(epochs=1),
        optimizer=dataclasses.replace(sft.optimizer, peak_lr=5e-7),
        evaluate_at=(0.25, 0.5, 0.75, 1.0),
    )  # fmt: skip


def study() -> Study:
    return Study(name="conifer_dpo", run=preferred(), seeds=SEEDS, measure_speedup=False)
