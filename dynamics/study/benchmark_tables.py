"""Benchmarks that cells were asked: means over tasks and over questions, with intervals and against the baseline.

    macro   every task counts once: the mean over tasks of the share of right answers
    micro   every question counts once

Questions are drawn anew within each task, so that a task keeps its weight, and seeds as everywhere (points.py). A draw
is the same for all cells that were asked the same questions, so differences from the baseline are paired. Readings of a
run are matched from its end: the last with the last.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamics.errors import UserError
from dynamics.seeds import stream
from dynamics.study.gather import records_of
from dynamics.study.mixtures import BASELINE, UNTUNED, labeled_cells, spread
from dynamics.study.points import Bootstrap, Interval, interval, replicate, seed_weights
from dynamics.study.published import published

Result = Mapping[str, Any]
Entry = Mapping[str, Any]
_Lane = tuple[str, str, int]  # (size, label, records)
_TITLES = {"cmmlu": "CMMLU", "agieval": "AGIEval", "ceval": "C-Eval"}
PUBLISHED_SIZE = "7b"  # the published scores are of this size; beside another size they are only a landmark


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One benchmark at one number of examples, asked of one mixture at one size at one time of its run."""

    mixture: str
    size: str
    params: int
    records: int
    benchmark: str
    shots: int | None  # examples before the question; None where the benchmark has no such setting
    letters: str  # how the answer is read: the token of the bare letter, or of the letter after its lead-in
    reading: int  # readings of the run that came after this one; 0 is the last
    epoch: float
    num_seeds: int
    num_tasks: int
    num_items: int
    macro: Interval
    micro: Interval
    chance_macro: float
    chance_micro: float
    macro_difference: Interval | None  # from the baseline of the same size; None where it was not asked the same
    micro_difference: Interval | None
    published: float | None  # of the paper's 7B model at the same mixture, examples and epoch

    @property
    def title(self) -> str:
        name = _TITLES.get(self.benchmark, self.benchmark)
        return name if self.shots is None else f"{name} {self.shots}-shot"


def benchmark_rows(results: Sequence[Result], *, bootstrap: Bootstrap | None = None) -> list[BenchmarkRow]:
    """Every reading of every benchmark, the baseline first; empty where no cell was asked one."""
    bootstrap = bootstrap or Bootstrap()
    sets: dict[tuple[Any, ...], dict[tuple[_Lane, int], list[tuple[Result, Entry]]]] = {}
    bases = _untuned_labels(results)
    for label, records, result in labeled_cells(results):
        for entry, reading in _from_the_end(result.get("benchmarks") or ()):
            name = bases[_untuned_key(result, entry)] if label == UNTUNED else label
            lane = (result["coords"]["size"], name, records)
            members = sets.setdefault(_asked(entry), {}).setdefault((lane, reading), [])
            if _is_new(result, entry, members):
                members.append((result, entry))
    rows = [row for asked, places in sets.items() for row in _rows(asked, places, bootstrap)]
    return sorted(
        rows,
        key=lambda row: (
            row.benchmark, -1 if row.shots is None else row.shots, row.letters, row.params,
            row.records > 0, row.mixture != BASELINE, row.records, row.mixture, -row.reading,
        ),
    )  # fmt: skip


def _untuned_labels(results: Sequence[Result]) -> dict[tuple[Any, ...], str]:
    """What a model before tuning is called, by its size, what it was asked and its answers.

    It is scored once for each source. Where the answers differ, so do the models, and their sources tell them apart.
    """
    sources: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for result in results:
        if result["coords"].get("params") is not None and records_of(result) == 0:
            for entry, _ in _from_the_end(result.get("benchmarks") or ()):
                *place, answers = _untuned_key(result, entry)
                named = sources.setdefault(tuple(place), {}).setdefault(answers, [])
                named.append(str(result["coords"].get("source")))
    return {
        (*place, answers): UNTUNED if len(each) == 1 else f"{UNTUNED} ({', '.join(dict.fromkeys(names))})"
        for place, each in sources.items()
        for answers, names in each.items()
    }


def _untuned_key(result: Result, entry: Entry) -> tuple[Any, ...]:
    return result["coords"]["size"], *_asked(entry), _answers(entry)


def _asked(entry: Entry) -> tuple[Any, ...]:
    return entry["benchmark"], entry["shots"], entry.get("letters", ""), _questions(entry)


def _answers(entry: Entry) -> str:
    return " ".join(each["correct"] for _, each in sorted(entry["tasks"].items()))


def _is_new(result: Result, entry: Entry, members: Sequence[tuple[Result, Entry]]) -> bool:
    """Whether a cell stands for itself. A model before tuning is scored once for each source: the same answers again
    are the same model."""
    twice = [(other, told) for other, told in members if other["coords"]["seed"] == result["coords"]["seed"]]
    if twice and (result["coords"]["volume"] != 0 or _answers(twice[0][1]) != _answers(entry)):
        raise UserError(
            f"cells {twice[0][0]['cell']} and {result['cell']} would be one row of the benchmarks, at "
            f"{dict(result['coords'])}; give the axis that tells them apart a name in coords"
        )
    return not twice


def _from_the_end(entries: Sequence[Entry]) -> list[tuple[Entry, int]]:
    """Each entry with the number of later readings of its benchmark in the same run."""
    seen: dict[tuple[Any, ...], int] = {}
    found = []
    for entry in sorted(entries, key=lambda each: -each.get("step", 0)):
        key = (entry["benchmark"], entry["shots"], entry.get("letters", ""))
        seen[key] = seen.get(key, -1) + 1
        found.append((entry, seen[key]))
    return found


def _questions(entry: Entry) -> tuple[tuple[str, str, int], ...]:
    """What was asked: two entries with the same value can be compared question by question."""
    return tuple(sorted((task, each.get("ids", ""), len(each["correct"])) for task, each in entry["tasks"].items()))


def _rows(
    asked: tuple[Any, ...], places: Mapping[tuple[_Lane, int], list[tuple[Result, Entry]]], bootstrap: Bootstrap
) -> list[BenchmarkRow]:
    benchmark, shots, letters, questions = asked
    tasks = [(task, count) for task, _, count in questions if count]
    if not tasks:
        return []
    drawn = np.concatenate([_task_weights(f"{benchmark}/{task}", count, bootstrap) for task, count in tasks], axis=1)
    draws = {name: _replicates(places, tasks, drawn, bootstrap, macro=name == "macro") for name in ("macro", "micro")}
    index = {place: position for position, place in enumerate(places)}
    rows = []
    for (lane, reading), members in places.items():
        size, label, records = lane
        own = index[lane, reading]
        base = next((index[p] for p in places if p[0][:2] == (size, BASELINE) and p[1] == reading), None)
        found = {name: interval(each[:, own], level=bootstrap.level) for name, each in draws.items()}
        differs = {
            name: None
            if base is None or label == BASELINE
            else interval(each[:, own] - each[:, base], level=bootstrap.level)
            for name, each in draws.items()
        }
        entries = [entry for _, entry in members]
        epoch = round(float(np.mean([entry.get("epoch", math.nan) for entry in entries])), 2)
        rows.append(
            BenchmarkRow(
                mixture=label,
                size=size,
                params=members[0][0]["coords"]["params"],
                records=records,
                benchmark=benchmark,
                shots=shots,
                letters=letters,
                reading=reading,
                epoch=epoch,
                num_seeds=len(members),
                num_tasks=len(tasks),
                num_items=sum(count for _, count in tasks),
                macro=found["macro"],
                micro=found["micro"],
                chance_macro=float(entries[0]["chance_macro"]),
                chance_micro=float(entries[0]["chance_micro"]),
                macro_difference=differs["macro"],
                micro_difference=differs["micro"],
                published=published(label, records, benchmark, shots, epoch),
            )
        )
    return rows


def _replicates(
    places: Mapping[tuple[_Lane, int], list[tuple[Result, Entry]]],
    tasks: Sequence[tuple[str, int]],
    drawn: Float[np.ndarray, "reps items"],
    bootstrap: Bootstrap,
    *,
    macro: bool,
) -> Float[np.ndarray, "reps places"]:
    """The mean of every place, estimate first. A task's questions weigh 1 over their number for the macro mean."""
    tuned = [r["coords"]["seed"] for cells in places.values() for r, _ in cells if r["coords"]["volume"] != 0]
    seeds = sorted(set(tuned)) or [0]
    sizes = np.concatenate([np.full(count, 1 / count if macro else 1.0) for _, count in tasks])
    right = np.full((len(seeds), 1, len(places), len(sizes)), np.nan)
    for index, cells in enumerate(places.values()):
        for result, entry in cells:
            text = "".join(entry["tasks"][task]["correct"] for task, _ in tasks)
            seed = result["coords"]["seed"]
            right[seeds.index(seed) if seed in seeds else 0, 0, index] = np.frombuffer(text.encode(), np.uint8) == ord(
                "1"
            )
    return replicate(
        right * sizes,
        np.broadcast_to(sizes, right.shape),
        seeds=seed_weights(len(seeds), bootstrap),
        items=drawn,
    )[:, 0]


def _task_weights(name: str, count: int, bootstrap: Bootstrap) -> Float[np.ndarray, "reps items"]:
    weights = np.ones((bootstrap.draws + 1, count))
    draw = stream(bootstrap.seed, "bootstrap", "questions", name)
    weights[1:] = draw.multinomial(count, np.full(count, 1 / count), size=bootstrap.draws)
    return weights


def rows_of(rows: Sequence[BenchmarkRow]) -> list[dict[str, Any]]:
    """The same as flat rows for CSV and machines."""
    nothing = Interval(value=math.nan, low=math.nan, high=math.nan)
    return [
        {
            "mixture": row.mixture,
            "size": row.size,
            "params": row.params,
            "records": row.records,
            "benchmark": row.benchmark,
            "shots": row.shots,
            "letters": row.letters,
            "epoch": row.epoch,
            "seeds": row.num_seeds,
            "tasks": row.num_tasks,
            "questions": row.num_items,
            **spread("macro", row.macro),
            **spread("micro", row.micro),
            "chance_macro": row.chance_macro,
            "chance_micro": row.chance_micro,
            **spread("macro_difference", row.macro_difference or nothing),
            **spread("micro_difference", row.micro_difference or nothing),
            "published_7b": row.published,
        }
        for row in rows
    ]
