"""Scores of many cells -> one list, and one flat table for other tools."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dynamics.study.folder import StudyFolder


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """The scores of every finished cell, in the order of the study's plan. Unfinished cells are left out.

    Cells of an earlier plan that lie in the same folder are not part of the study and are left out too.
    """
    study = StudyFolder(Path(folder))
    found = (study.cell(cell["id"]).scores() for cell in study.plan()["cells"])
    return [scores for scores in found if scores is not None]


def rows(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One flat row for each cell, split and ability: coordinates, score, chance, loss in nats a token, counts.

    Benchmarks follow the abilities of a cell, in rows of the split "benchmark": the score is the mean over tasks, and
    steps and epochs are those of the reading.
    """
    for cell in results:
        for split in ("valid", "test"):
            for ability, scored in cell[split].items():
                tokens = sum(scored["num_tokens"])
                yield {
                    "cell": cell["cell"],
                    **cell["coords"],
                    "split": split,
                    "ability": ability,
                    "score": _mean(scored["scores"]),
                    "chance": _mean(scored["chance"]),
                    "loss": sum(scored["loss_sums"]) / tokens if tokens else None,
                    "items": len(scored["scores"]),
                    "unparsed": scored["unparsed"],
                    "steps": cell["run"]["steps"],
                    "epochs": cell["run"]["epochs"],
                    "tokens": cell["run"]["tokens"],
                }
        for entry in cell.get("benchmarks") or ():
            shots = "" if entry["shots"] is None else f" {entry['shots']}-shot"
            yield {
                "cell": cell["cell"],
                **cell["coords"],
                "split": "benchmark",
                "ability": f"{entry['benchmark']}{shots}",
                "score": entry["macro"],
                "chance": entry["chance_macro"],
                "loss": None,
                "items": entry["num_items"],
                "unparsed": 0,
                "steps": entry["step"],
                "epochs": entry["epoch"],
                "tokens": None,
            }


def export(results: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Write the flat rows as JSON lines, at once."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for row in rows(results):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
    return path


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
