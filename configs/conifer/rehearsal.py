"""Conifer's ablation and both stages of its training at tiny sizes, on generated constraints that a rule can check.

    dynamics study run configs/conifer/rehearsal.py

Paper: Sun et al. 2024, Conifer (arXiv 2404.02823). The grids are those of ablation.py and dpo.py in this folder,
through the same code. Data: lists of words under one to five constraints in the published shape and proportions
(levels that a filter left out, internal and external feedback); nothing is downloaded, and no number here says anything
about Mistral. The template is DoIT's, whose marks are one token each; the paper's would be half of every turn.

    ablation    4 arrangements of the levels x 3 seeds, fine-tuned
    DPO         the easy-to-hard model of each seed, then pairs of which one reply breaks one constraint: 3 seeds

Evaluated are questions of each level by themselves, and level 5 at the end of a conversation from easy to hard.

Expect: about 3 minutes on 2 idle CPU cores, base model included (11 measured on very busy ones, 4.8 CPU-minutes). What
comes of it: docs/results/conifer_rehearsal.md.
"""

import dataclasses

from dynamics.data.conifer import ConiferRehearsal
from dynamics.data.conifer.arrangement import Arrangement
from dynamics.data.replies import Replies
from dynamics.eval.ability_eval import Evaluation
from dynamics.losses.dpo import DPO
from dynamics.study.grid import Study
from dynamics.study.run import After, Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

SEEDS = (0, 1, 2)
BATCH = Batch(rows=4, length=128)
ARRANGEMENTS: tuple[Arrangement, ...] = ("easy_to_hard", "shuffled", "hard_to_easy", "hard_only")


def tuned() -> Run:
    """The first stage, easy to hard."""
    return Run(
        source=ConiferRehearsal(name="easy to hard"),
        vocab_size=600,
        volume="full",
        batch=BATCH,
        budget=Budget(epochs=8),
        optimizer=PRACTICE,
        base=Base(tokens=600_000, batch=BATCH, optimizer=PRACTICE),
        evaluation=Evaluation(max_new_tokens=16, max_length=256, row_length=128),
        evaluate_at=(0.5, 1.0),
    )


def preferred(sft: Run) -> Run:
    """The second stage, from the model that the first chose."""
    return dataclasses.replace(
        sft,
        base=After(run=sft),
        objective=DPO(beta=0.1),
        replies=Replies(),
        budget=Budget(epochs=2),
        optimizer=dataclasses.replace(PRACTICE, peak_lr=1e-4, end_lr=1e-5, warmup_share=0.1),
    )


def study(seeds: tuple[int, ...] = SEEDS, arrangements: tuple[Arrangement, ...] = ARRANGEMENTS) -> Study:
    """Both grids in one folder; the arguments make smaller cuts of it."""
    sft = tuned()
    sources = tuple(
        dataclasses.replace(sft.source, name=name.replace("_", " "), arrangement=name) for name in arrangements
    )
    dpo = Study(name="conifer_dpo", run=preferred(sft), seeds=seeds, base_cells=False)
    return Study(
        name="conifer_rehearsal", run=sft, sources=sources, seeds=seeds, base_cells=False, measure_speedup=False,
        plus=(dpo,),
    )  # fmt: skip
