"""The benchmark folders: CMMLU, AGIEval and C-Eval in their published layouts, and C-Eval's parts as DoIT's records."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamics.data.practice.world import World
from dynamics.data.rehearsal.exams import (
    AGIEVAL,
    CEVAL,
    CMMLU,
    LETTERS,
    Exam,
    bracketed,
    ceval_header,
    ceval_text,
    exams,
    several_golds,
)
from dynamics.data.sources import write_jsonl

SHOTS = 5
CMMLU_ITEMS = 30  # test questions of a subject
AGIEVAL_ITEMS = 32  # questions of a set with one gold letter
SEVERAL_ITEMS = 4  # questions of gaokao-physics with two, which are to be left out
CEVAL_ITEMS = 40  # questions of a part, as published
_SEVERAL = "gaokao-physics"


def ceval_rows(world: World, task: str) -> list[dict[str, Any]]:
    """DoIT's records of 12 messages: five questions with their answers, then one question with its own."""
    title, _ = CEVAL[task]
    dev, val = _ceval_exams(world, task)
    rows = []
    for index, asked in enumerate(val):
        texts = [text for one in (*dev, asked) for text in (ceval_text(one), one.gold)]
        texts[0] = ceval_header(title) + texts[0]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        rows.append({"messages": messages, "idx": index, "type": f"ceval_{task}_fshot", "question_format": 0})
    return rows


def write_benchmarks(folder: Path, world: World) -> None:
    """cmmlu/{dev,test}/*.csv, agieval/*.jsonl with few_shot_prompts.csv, ceval/{dev,val}/*.csv."""
    for task, (_, subject) in CMMLU.items():
        some = exams(world, "cmmlu", task, subject, shown=SHOTS, asked=CMMLU_ITEMS)
        for part, part_of in zip(("dev", "test"), some, strict=True):
            header = ["", "Question", *LETTERS, "Answer"]
            lines = [[index, one.question, *one.options, one.gold] for index, one in enumerate(part_of)]
            _write_csv(folder / "cmmlu" / part / f"{task}.csv", [header, *lines])
    for task in CEVAL:
        dev, val = _ceval_exams(world, task)
        header = ["id", "question", *LETTERS, "answer"]
        asked = [[index, one.question, *one.options, one.gold] for index, one in enumerate(val)]
        shown = [[index, one.question, *one.options, one.gold, _why(one)] for index, one in enumerate(dev)]
        _write_csv(folder / "ceval" / "val" / f"{task}_val.csv", [header, *asked])
        _write_csv(folder / "ceval" / "dev" / f"{task}_dev.csv", [[*header, "explanation"], *shown])
    _write_agieval(folder / "agieval", world)


def _ceval_exams(world: World, task: str) -> list[list[Exam]]:
    return exams(world, "ceval", task, CEVAL[task][1], shown=SHOTS, asked=CEVAL_ITEMS)


def _write_agieval(folder: Path, world: World) -> None:
    several = several_golds(world, SEVERAL_ITEMS + 1)
    columns: dict[str, list[str]] = {}
    for task, subject in AGIEVAL.items():
        shown, asked = exams(world, "agieval", task, subject, shown=SHOTS, asked=AGIEVAL_ITEMS)
        if task == _SEVERAL:  # one of the examples too, and the others spread among the questions
            shown = [*shown[:2], several[0], *shown[2:-1]]
            for place, one in enumerate(several[1:]):
                asked.insert(3 + 9 * place, one)
        write_jsonl(folder / f"{task}.jsonl", (_agieval_row(one) for one in asked))
        columns[task] = [cell for one in shown for cell in (repr(_agieval_row(one)), _why(one))]
    names = [f"{what} {number}" for number in range(1, SHOTS + 1) for what in ("sample", "explanation")]
    lines = [[name, *(columns[task][index] for task in columns)] for index, name in enumerate(names)]
    _write_csv(folder / "few_shot_prompts.csv", [["", *columns], *lines])


def _agieval_row(exam: Exam) -> dict[str, Any]:
    return {
        "passage": exam.passage or None,
        "question": exam.question,
        "options": bracketed(exam),
        "label": exam.gold if len(exam.gold) == 1 else list(exam.gold),
        "answer": None,
        "other": {"source": "rehearsal"},
    }


def _why(exam: Exam) -> str:
    return f"{exam.gold}: {exam.options[LETTERS.index(exam.gold[0])]}"


def _write_csv(path: Path, lines: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
