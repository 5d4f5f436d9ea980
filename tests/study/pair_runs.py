"""A run that learns from pairs, of the smallest possible shape: a rule that a few updates learn."""

import itertools
import json
from pathlib import Path

from dynamics.data.pair_files import PairFiles
from dynamics.losses.dpo import DPO
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

from .tiny import SIZE

COLORS = ("red", "blue", "green", "gray", "pink", "white")
THINGS = ("cup", "hat", "boat", "door", "tree", "lamp", "book", "bell")


def write_pairs(folder: Path, *, parts: tuple[str, ...] = ("politeness",), closing: str = "sir") -> PairFiles:
    """Pairs whose chosen reply is polite and whose rejected one is not: 48 prompts, hashed into the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        rows = [
            {"prompt": f"{part}: give me the {color} {thing}", "chosen": f"yes, {closing}, the {thing}",
             "rejected": f"no, not the {color} {thing}"}
            for color, thing in itertools.product(COLORS, THINGS)
        ]  # fmt: skip
        (folder / f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    files = tuple((part, f"{part}.json") for part in parts)
    return PairFiles(data_dir=str(folder), files=files, valid_share=0.2, test_share=0.2)


def pair_run(source: PairFiles) -> Run:
    return Run(
        source=source,
        size=SIZE,
        vocab_size=420,
        volume=16,
        batch=Batch(rows=4, length=128),
        budget=Budget(updates=6),
        optimizer=PRACTICE,
        objective=DPO(beta=0.1),
        evaluate_at=(0.34, 0.5, 1.0),
    )
