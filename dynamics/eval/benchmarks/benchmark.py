"""Benchmark: a family of published multiple-choice tests, each a reader of its files and a layout of its prompts.

A member gives questions; a question writes itself as a conversation with any number of worked examples ("shots"), and
its answer is read from the logits of the option letters after the prompt. Each member repeats the layout of the code
that the numbers to compare with come from, to the letter.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamics.config import check_fields
from dynamics.errors import UserError
from dynamics.record import Turn

LETTERS = "ABCDEFG"
LetterKind = Literal["bare", "answer"]
# Tokens of a prompt that ends with the user's turn, the opening of the answer included.
LengthOf = Callable[[tuple[Turn, ...]], int]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question: `options` are its letters, `gold` one of them, `id` is unique within the benchmark."""

    task: str
    id: str
    options: tuple[str, ...]
    gold: str

    @property
    def max_shots(self) -> int:
        """How many worked examples there are for it."""
        raise NotImplementedError

    def turns(self, shots: int) -> tuple[Turn, ...]:
        """The conversation with `shots` examples, or all there are if those are fewer; it ends with the user."""
        raise NotImplementedError

    def fitted(self, shots: int, length_of: LengthOf, max_length: int) -> tuple[Turn, ...] | None:
        """The same with as many examples left out as it takes to fit; None when it does not fit without any."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the files of a benchmark hold: the questions in a fixed order, and what was left out of them."""

    questions: tuple[Question, ...]
    left_out: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)  # reason: {task: questions}
    missing: tuple[str, ...] = ()  # known tasks without a file
    unknown: tuple[str, ...] = ()  # files that are no known task

    def counts(self) -> dict[str, int]:
        """Everything that is not asked, as totals: all questions left out, those of each reason, and tasks."""
        reasons = {reason: sum(tasks.values()) for reason, tasks in self.left_out.items()}
        return {
            "left_out": sum(reasons.values()),
            **reasons,
            "missing_tasks": len(self.missing),
            "unknown_files": len(self.unknown),
        }

    def fingerprint(self) -> str:
        """16 hex digits of everything that is asked: all examples, questions, options and golds, in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for one in self.questions:
            turns = [(turn.role, turn.content) for turn in (*one.turns(0), *one.turns(one.max_shots))]
            line = json.dumps([one.task, one.id, one.options, one.gold, turns], separators=(",", ":"))
            digest.update(line.encode("ascii") + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How a benchmark is asked. Members say which files they read and how a prompt is laid out.

    `shots`: each number of worked examples is a test of its own. `tasks`: only these; all that are there by default.
    `letters`: whether the logits of the bare letter pieces ("A") are compared, as the published code of CMMLU and
    AGIEval does, or of the pieces that an answer begins with ("▁A" in LLaMA's vocabulary), as in training.
    `max_length`: tokens of a prompt; examples are left out until it fits. `limit`: only the first questions of each
    task, for a quick look; the rest is counted as left out.
    """

    data_dir: str
    shots: tuple[int, ...] = (0, 5)
    tasks: tuple[str, ...] = ()
    letters: LetterKind = "bare"
    max_length: int = 2048
    limit: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"{self.name}: shots is {self.shots}; give different whole numbers >= 0, such as (0, 5)")
        if self.max_length < 1 or (self.limit is not None and self.limit < 1):
            raise UserError(
                f"{self.name}: max_length is {self.max_length} and limit {self.limit}; give whole numbers >= 1"
            )

    @property
    def name(self) -> str:
        """What the benchmark is called in results."""
        raise NotImplementedError

    def read(self) -> Contents:
        """The questions under `data_dir`, before `limit`. A wrong file is a UserError with file, row and field."""
        raise NotImplementedError

    def contents(self) -> Contents:
        """The questions that are asked, and what was left out; reads the files. UserError when none is left."""
        contents = self.read()
        if not contents.questions:
            out = "; ".join(
                f"{reason}: {', '.join(f'{count} of {task}' for task, count in tasks.items())}"
                for reason, tasks in contents.left_out.items()
            )
            raise UserError(f"{self.name}: {self.data_dir} leaves no question to ask (left out as {out or 'nothing'})")
        repeated = [one for one, times in Counter(question.id for question in contents.questions).items() if times > 1]
        if repeated:
            raise UserError(
                f"{self.name}: {self.data_dir} gives the id {repeated[0]!r} to several questions; number them apart"
            )
        return limited(contents, self.limit)

    def questions(self) -> tuple[Question, ...]:
        """The questions in the order of tasks and files."""
        return self.contents().questions

    def counts(self) -> dict[str, int]:
        """What was left out: see Contents.counts."""
        return self.contents().counts()

    def fingerprint(self) -> str:
        """16 hex digits of what is asked: see Contents.fingerprint."""
        return self.contents().fingerprint()

    def fitted(self, question: Question, shots: int, length_of: LengthOf) -> tuple[Turn, ...] | None:
        """The prompt of a question within `max_length` tokens, by the published rule of what is left out first.

        It differs from question.turns(shots) where something was left out. None when nothing fits.
        """
        return question.fitted(shots, length_of, self.max_length)


def limited(contents: Contents, limit: int | None) -> Contents:
    """The first `limit` questions of each task; the others are counted as left out, reason "beyond_limit"."""
    if limit is None:
        return contents
    kept: list[Question] = []
    seen: dict[str, int] = {}
    for question in contents.questions:
        seen[question.task] = seen.get(question.task, 0) + 1
        if seen[question.task] <= limit:
            kept.append(question)
    beyond = {task: count - limit for task, count in seen.items() if count > limit}
    left_out = {**contents.left_out, "beyond_limit": beyond} if beyond else contents.left_out
    return dataclasses.replace(contents, questions=tuple(kept), left_out=left_out)


def chosen_tasks(
    name: str, asked: Sequence[str], known: Iterable[str], present: Iterable[str], where: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(tasks to read, known tasks that are not there). A task asked for by name must be there.

    Raises UserError for it, and when nothing is there at all.
    """
    known, present = tuple(known), set(present)
    for task in asked:
        if task not in present:
            there = ", ".join(sorted(present)) or "none"
            raise UserError(f"{name}: {where} has no task {task!r}; it has {there}")
    if not present & set(known):
        raise UserError(f"{name}: {where} has none of its files; give the folder that holds them as data_dir")
    if asked:
        return tuple(asked), ()
    return tuple(one for one in known if one in present), tuple(one for one in known if one not in present)


def existing_folder(name: str, data_dir: str) -> Path:
    """The folder as a Path; a UserError when it is not there."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"{name}: no folder {data_dir}; give the folder of the benchmark's files as data_dir")
    return folder


def worked_examples(path: Path) -> Path:
    """The file of a task's worked examples; a UserError when it is not there."""
    if not path.is_file():
        raise UserError(f"{path}, which has the worked examples, is missing; put it there or give shots=(0,)")
    return path


def user(text: str) -> Turn:
    return Turn(role="user", content=text)


def assistant(text: str) -> Turn:
    return Turn(role="assistant", content=text)
