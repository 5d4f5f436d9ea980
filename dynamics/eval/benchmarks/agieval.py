"""AGIEval's ten multiple-choice sets in Chinese, with worked examples as turns of a chat.

Source of the layout: evaluate/agieval of ChiyuSONG/dynamics-of-instruction-tuning, after ruixiangcui/AGIEval. As
there, a question with several gold letters is left out, and so is such an example, whose number is then missing:
the examples of gaokao-physics are numbered 1, 2 and 4, and the question after them is number 4 again.
"""

import ast
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.data.lines import read_lines
from dynamics.errors import UserError
from dynamics.eval.benchmarks.benchmark import (
    LETTERS,
    Benchmark,
    Contents,
    LengthOf,
    Question,
    assistant,
    chosen_tasks,
    existing_folder,
    user,
)
from dynamics.record import Turn

SETS = (
    "logiqa-zh",
    "gaokao-chinese",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-biology",
    "gaokao-chemistry",
    "gaokao-mathqa",
    "jec-qa-kd",
    "jec-qa-ca",
    "gaokao-physics",
)
EXAMPLES_FILE = "few_shot_prompts.csv"
EXAMPLE_ROWS = (1, 3, 5, 7, 9)  # of the examples' file, the header being row 0; explanations stand between them
ANSWER_ROOM = 48  # tokens that the published rule keeps free when it counts how many examples fit
_FIELDS = ("passage", "question", "options", "label")


@dataclass(frozen=True, kw_only=True)
class AgiEvalQuestion(Question):
    """A question by its parts: without examples it is laid out otherwise than after them."""

    passage: str
    question: str
    choices: tuple[str, ...]  # their texts, letters included
    examples: tuple[tuple[str, str], ...]  # (user, assistant)

    @property
    def max_shots(self) -> int:
        return len(self.examples)

    def turns(self, shots: int) -> tuple[Turn, ...]:
        if shots == 0:
            asked = f"{self.passage}问题：{self.question} 选项：{' '.join(self.choices)}\n{_answer(len(self.options))}"
            return (user(asked),)
        return self._after(self.examples[:shots])

    def _after(self, examples: tuple[tuple[str, str], ...]) -> tuple[Turn, ...]:
        shown = [turn for asked, answer in examples for turn in (user(asked), assistant(answer))]
        asked = _numbered(len(examples) + 1, self.passage, self.question, self.choices, len(self.options))
        return (*shown, user(asked))

    def fitted(self, shots: int, length_of: LengthOf, max_length: int) -> tuple[Turn, ...] | None:
        """Examples are taken in their order while their text fits beside the question's and 48 tokens.

        Where the prompt as it is asked is still too long (a template may write more), the last ones go.
        """
        if shots == 0:
            turns = self.turns(0)
            return turns if length_of(turns) <= max_length else None
        frame = length_of((user(""),)) - 1  # what the template adds; published counts have one begin of text each
        own = length_of((user(self.passage + self.question + " ".join(self.choices)),)) - frame
        examples, joined = self.examples[:shots], ""
        for place, (asked, answer) in enumerate(examples):
            joined += asked + answer
            if length_of((user(joined),)) - frame > max_length - ANSWER_ROOM - own:
                examples = examples[:place]
                break
        while examples and length_of(self._after(examples)) > max_length:
            examples = examples[:-1]
        turns = self._after(examples)
        return turns if length_of(turns) <= max_length else None


@dataclass(frozen=True, kw_only=True)
class AgiEval(Benchmark):
    """AGIEval's Chinese sets as published: `data_dir` holds {set}.jsonl, and there or one folder up the examples.

    A set has as many examples as few_shot_prompts.csv gives with one gold letter: three to five of them; a larger
    number of shots takes them all. Published scores are means over questions and means over sets, and papers do not
    always say which.
    """

    @property
    def name(self) -> str:
        return "agieval"

    def read(self) -> Contents:
        folder = existing_folder(self.name, self.data_dir)
        files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
        tasks, missing = chosen_tasks(self.name, self.tasks, SETS, files, folder)
        examples = _read_examples(folder, tasks) if any(self.shots) else {}
        questions: list[Question] = []
        several: dict[str, int] = {}
        for task in tasks:
            for line in read_lines(files[task]):
                where = f"{files[task]}:{line.line}"
                if line.problem:
                    raise UserError(f"{where}: {line.problem}")
                passage, question, choices, golds = _parts(line.data, where)
                if len(choices) < 2:
                    raise UserError(f"{where}: options has {len(choices)} texts; a question needs two or more")
                if len(golds) != 1:
                    several[task] = several.get(task, 0) + 1
                    continue
                questions.append(
                    AgiEvalQuestion(
                        task=task,
                        id=f"{task}/{line.line}",
                        options=tuple(LETTERS[: len(choices)]),
                        gold=_one_of(golds[0], LETTERS[: len(choices)], where),
                        passage=passage,
                        question=question,
                        choices=choices,
                        examples=examples.get(task, ()),
                    )
                )
        # The English sets and the cloze of the same folder are not this benchmark; they are told, not dropped.
        unknown = tuple(sorted(files.keys() - set(SETS)))
        left_out = {"several_golds": several} if several else {}
        return Contents(questions=tuple(questions), left_out=left_out, missing=missing, unknown=unknown)


def _answer(num_options: int) -> str:
    return f"答案：从A到{LETTERS[num_options - 1]}, 我们应选择"


def _numbered(number: int, passage: str, question: str, choices: tuple[str, ...], num_options: int) -> str:
    options = " ".join(choices)
    return f"问题 {number}.   {passage} {question}\n从以下选项中选择:    {options}\n{_answer(num_options)}"


def _parts(data: Any, where: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """(passage, question, options, gold letters) of a decoded object; other fields are not looked at."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: is no object with the fields {', '.join(_FIELDS)}")
    for field in _FIELDS:
        if field not in data:
            raise UserError(f"{where}: {field} is missing; it has {', '.join(map(repr, data))}")
    passage, question, options, label = (data[field] for field in _FIELDS)
    if passage is not None and not isinstance(passage, str):
        raise UserError(f"{where}: passage is {passage!r:.40}; it must be a text or null")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question is {question!r:.40}; it must be a text")
    options = [] if options is None else options
    if not isinstance(options, list) or not all(isinstance(one, str) for one in options) or len(options) > len(LETTERS):
        raise UserError(f"{where}: options is {options!r:.40}; it must be a list of at most {len(LETTERS)} texts")
    golds = tuple(label) if isinstance(label, (str, list)) else ()
    if not golds or not all(isinstance(one, str) for one in golds):
        raise UserError(f"{where}: label is {label!r:.40}; it must be a letter or a list of letters")
    blank = next((place for place, one in enumerate(options) if not one.strip()), None)
    if blank is not None:
        raise UserError(f"{where}: options[{blank}] is blank; write it or take the line out")
    return passage or "", question, tuple(options), golds


def _one_of(letter: str, options: str, where: str) -> str:
    if len(letter) != 1 or letter not in options:
        raise UserError(f"{where}: label is {letter!r}; it must be one of {', '.join(options) or 'the options'}")
    return letter


def _read_examples(folder: Path, tasks: tuple[str, ...]) -> dict[str, tuple[tuple[str, str], ...]]:
    """{set: its worked examples}, those with several gold letters left out and their numbers with them."""
    path = next((one / EXAMPLES_FILE for one in (folder, folder.parent) if (one / EXAMPLES_FILE).is_file()), None)
    if path is None:
        raise UserError(
            f"agieval: {folder} has no {EXAMPLES_FILE}, nor has the folder above; put it there or give shots=(0,)"
        )
    csv.field_size_limit(max(csv.field_size_limit(), 2**24))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV file: {error}") from error
    if len(rows) <= EXAMPLE_ROWS[-1]:
        raise UserError(f"{path} has {len(rows)} rows; examples stand in rows {', '.join(map(str, EXAMPLE_ROWS))}")
    found = {}
    for task in tasks:
        if task not in rows[0]:
            raise UserError(f"{path}: no column {task!r}; it has {', '.join(map(repr, rows[0]))}")
        column = rows[0].index(task)
        cells = [(row, rows[row][column]) for row in EXAMPLE_ROWS if len(rows[row]) > column and rows[row][column]]
        shown = [_example(cell, number, f"{path}: row {row}: {task}") for number, (row, cell) in enumerate(cells, 1)]
        found[task] = tuple(one for one in shown if one is not None)
    return found


def _example(cell: str, number: int, where: str) -> tuple[str, str] | None:
    try:
        data = ast.literal_eval(cell)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{where} is no Python literal: {error}") from error
    passage, question, choices, golds = _parts(data, where)
    if len(golds) != 1:
        return None
    # A set's examples may hold all options in one text.
    num_options = 4 if len(choices) == 1 else len(choices)
    asked = _numbered(number, passage, question, choices, num_options)
    return asked, _one_of(golds[0], LETTERS[:num_options], where)
