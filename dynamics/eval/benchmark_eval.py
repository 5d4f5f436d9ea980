"""Accuracy of a model on published multiple-choice benchmarks, read from the logits of the option letters.

`prepare_benchmark` writes and encodes the prompts once, `answers` puts them to a model, `summarize` is the arithmetic.
Papers give means over tasks or over items and do not always say which: both are here, with standard errors.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from dynamics.data.template import Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.benchmarks import Benchmark, Question
from dynamics.eval.letters import letter_logits
from dynamics.eval.prepared import answer_letter_ids
from dynamics.record import Turn

OnProgress = Callable[[int, int], None]  # (items done, items there are)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTest:
    """One benchmark at one number of shots, ready to be put to any model with this vocabulary."""

    benchmark: str
    shots: int
    kind: str  # "bare" or "answer"; see Benchmark.letters
    letters: tuple[str, ...]
    letter_ids: Int32[np.ndarray, " letters"]
    pieces: tuple[str, ...]  # how the tokenizer writes the letters that are compared
    questions: tuple[Question, ...]
    asked: tuple[int, ...]  # places of the questions whose prompt fits, one for each prompt
    prompts: tuple[Int32[np.ndarray, " _"], ...]
    counts: Mapping[str, int]  # questions too long, with examples left out, not asked at all and why

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt; 0 without one."""
        return max(map(len, self.prompts), default=0)

    def fingerprint(self) -> str:
        """16 hex digits of everything that decides the answers but the model: prompts, letters, options and golds."""
        digest = hashlib.sha256(f"{self.benchmark} {self.shots} {self.letter_ids.tolist()}".encode())
        for question in self.questions:
            digest.update(f"\n{question.task} {question.id} {question.options} {question.gold}".encode())
        for place, prompt in zip(self.asked, self.prompts, strict=True):
            digest.update(f"\n{place} {len(prompt)} ".encode() + np.ascontiguousarray(prompt, "<i4").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What became of one question: the option of the highest logit, the first of them where several are equal."""

    question: Question
    option: str | None  # None: the prompt was too long to be asked
    logits: tuple[float, ...] = ()  # of the question's options
    tied: bool = False

    @property
    def correct(self) -> bool:
        return self.option == self.question.gold


def letter_ids_of(
    kind: str, letters: Sequence[str], tokenizer: Tokenizer, template: Template
) -> Int32[np.ndarray, " letters"]:
    """The ids that are compared: of the pieces 'A', 'B', ... ("bare"), or of what an answer begins with ("answer").

    SentencePiece has two pieces for a letter, 'A' and '▁A'; the published code of CMMLU and AGIEval compares the bare
    ones although answers are trained on the others. A byte-level tokenizer writes no space of its own: there 'A' is
    what follows a marker or a newline (ChatML, DoIT), and bare and answer are one; only where a template's answer
    stands on the line of a text ("ASSISTANT: A") do they differ, as 'A' and 'ĠA'.
    """
    if kind == "answer":
        return answer_letter_ids(letters, tokenizer, template)
    try:
        return np.asarray([tokenizer.bare_piece_id(letter) for letter in letters], np.int32)
    except UserError as error:
        raise UserError(f'{error}; that is letters="answer" (--letters answer)') from error


def prepare_benchmark(benchmark: Benchmark, *, tokenizer: Tokenizer, template: Template) -> tuple[PreparedTest, ...]:
    """The tests of a benchmark, one for each number of shots. Reads its files; needs no model."""
    contents = benchmark.contents()
    questions = contents.questions
    letters = tuple(sorted({letter for question in questions for letter in question.options}))
    ids = letter_ids_of(benchmark.letters, letters, tokenizer, template)
    return tuple(
        _prepare(benchmark, shots, questions, contents.counts(), letters, ids, tokenizer, template)
        for shots in benchmark.shots
    )


def _prepare(
    benchmark: Benchmark, shots: int, questions: tuple[Question, ...], left_out: Mapping[str, int],
    letters: tuple[str, ...], ids: Int32[np.ndarray, " letters"], tokenizer: Tokenizer, template: Template,
) -> PreparedTest:  # fmt: skip
    encoded: dict[tuple[Turn, ...], np.ndarray] = {}

    def tokens_of(turns: tuple[Turn, ...]) -> np.ndarray:
        if turns not in encoded:
            encoded[turns] = encode(template, tokenizer, turns, generate=True).tokens
        return encoded[turns]

    asked, prompts = [], []
    counts = {"too_long": 0, "shots_dropped": 0, **left_out}
    for place, question in enumerate(questions):
        encoded.clear()
        turns = benchmark.fitted(question, shots, lambda turns: len(tokens_of(turns)))
        if turns is None:
            counts["too_long"] += 1
            continue
        counts["shots_dropped"] += turns != question.turns(shots)
        asked.append(place)
        prompts.append(tokens_of(turns))
    return PreparedTest(
        benchmark=benchmark.name, shots=shots, kind=benchmark.letters, letters=letters, letter_ids=ids,
        pieces=tuple(tokenizer.piece(int(one)) for one in ids), questions=questions, asked=tuple(asked),
        prompts=tuple(prompts), counts=counts,
    )  # fmt: skip


def answers(
    model: Any,
    test: PreparedTest,
    *,
    mesh: Mesh | None = None,
    batch_tokens: int | None = None,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, Answer]]]:
    """(place of the question, its answer), batch by batch; those that are too long are not among them.

    Batches whose questions are all in `done` are left out; see `letter_logits`.
    """
    place_of = np.asarray(test.asked, np.int64)
    finished = frozenset(done)
    prompts_done = [prompt for prompt, place in enumerate(test.asked) if place in finished]
    column = {letter: place for place, letter in enumerate(test.letters)}
    batches = letter_logits(
        model, test.prompts, test.letter_ids.tolist(), mesh=mesh, batch_tokens=batch_tokens, done=prompts_done
    )
    for prompts, logits in batches:
        batch = []
        for place, row in zip(place_of[prompts].tolist(), logits, strict=True):
            question = test.questions[place]
            batch.append((place, chosen(question, row[[column[letter] for letter in question.options]])))
        yield batch


def chosen(question: Question, logits: Float32[np.ndarray, " options"]) -> Answer:
    """The option of the highest logit. Raises UserError where a logit is no number."""
    if not np.isfinite(logits).all():
        raise UserError(
            f"question {question.id!r} has logits {logits.tolist()}: the weights hold numbers that are none, or "
            "overflow in their type; look with dynamics model info MODEL --verify"
        )
    best = np.flatnonzero(logits == logits.max())
    return Answer(
        question=question,
        option=question.options[best[0]],
        logits=tuple(float(one) for one in logits),
        tied=len(best) > 1,
    )


def score_benchmarks(
    model: Any,
    benchmarks: Iterable[Benchmark | PreparedTest],
    *,
    tokenizer: Tokenizer,
    template: Template,
    mesh: Mesh | None = None,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """One entry of plain JSON data for each benchmark and number of shots; see `entry`.

    To score many models, prepare once and give the prepared tests. On a mesh that spans processes each calls it alike.
    """
    tests: list[PreparedTest] = []
    for one in benchmarks:
        is_prepared = isinstance(one, PreparedTest)
        tests.extend([one] if is_prepared else prepare_benchmark(one, tokenizer=tokenizer, template=template))
    total, done = sum(len(test.questions) for test in tests), 0
    entries = []
    for test in tests:
        began = time.monotonic()
        found: dict[int, Answer] = {}
        for batch in answers(model, test, mesh=mesh):
            found.update(batch)
            if on_progress is not None:
                on_progress(done + len(found), total)
        done += len(test.questions)
        entries.append(entry(test, found, seconds=time.monotonic() - began))
    return entries


def entry(test: PreparedTest, found: Mapping[int, Answer], *, seconds: float) -> dict[str, Any]:
    """The scores of one test as plain JSON data; a question without an answer counts as wrong.

    `tasks`: {task: {"correct": "0110", "chance": mean over its items, "ids": 16 hex digits of its items' ids}}, so that
    two models can be compared item by item.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task, group in _by_task(test.questions):
        tasks[task] = {
            "correct": "".join("1" if place in found and found[place].correct else "0" for place, _ in group),
            "chance": sum(1 / len(question.options) for _, question in group) / len(group),
            "ids": hashlib.sha256("\n".join(question.id for _, question in group).encode()).hexdigest()[:16],
        }
    return {
        "benchmark": test.benchmark,
        "shots": test.shots,
        "letters": test.kind,
        "pieces": list(test.pieces),
        **summarize({task: (data["correct"], data["chance"]) for task, data in tasks.items()}),
        "counts": {**test.counts, "ties": sum(answer.tied for answer in found.values())},
        "tasks": tasks,
        "seconds": round(seconds, 3),
    }


def _by_task(questions: Sequence[Question]) -> Iterator[tuple[str, list[tuple[int, Question]]]]:
    """(task, its questions with their places), in the order in which tasks first appear."""
    tasks: dict[str, list[tuple[int, Question]]] = {}
    for place, question in enumerate(questions):
        tasks.setdefault(question.task, []).append((place, question))
    yield from tasks.items()


def summarize(tasks: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """Means over tasks (macro) and over items (micro) of {task: (its items as "0110...", mean chance of an item)}.

    `chance_*` is what guessing among each item's options scores on average. Standard errors take the tasks as given and
    the items of each as drawn: the variance of a task's mean is p (1 - p) / (n - 1), tasks are independent, and the two
    means weigh them by 1 / tasks and by their share of the items. None where a task has a single item.
    Raises UserError for no tasks.
    """
    if not tasks:
        raise UserError("there are no tasks to average; ask at least one question")
    sizes = np.asarray([len(correct) for correct, _ in tasks.values()], np.float64)
    means = np.asarray([accuracy(correct) for correct, _ in tasks.values()])
    chances = np.asarray([chance for _, chance in tasks.values()])
    errors = [standard_error(correct) for correct, _ in tasks.values()]
    shares = sizes / sizes.sum()
    known = all(error is not None for error in errors)
    variances = np.asarray([error**2 for error in errors if error is not None])
    return {
        "num_items": int(sizes.sum()),
        "macro": float(means.mean()),
        "micro": float(shares @ means),
        "chance_macro": float(chances.mean()),
        "chance_micro": float(shares @ chances),
        "macro_se": math.sqrt(variances.sum()) / len(errors) if known else None,
        "micro_se": math.sqrt(shares**2 @ variances) if known else None,
    }


def task_rows(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each task of an entry: task, n, accuracy, chance, standard error (None for a single item)."""
    for task, data in one["tasks"].items():
        if "correct" in data:
            n, mean, error = len(data["correct"]), accuracy(data["correct"]), standard_error(data["correct"])
        else:
            n, mean = len(data["scores"]), sum(data["scores"]) / len(data["scores"])
            spread = sum((score - mean) ** 2 for score in data["scores"])
            error = (spread / (n - 1) / n) ** 0.5 if n > 1 else None
        yield {"task": task, "n": n, "accuracy": mean, "chance": data["chance"], "se": error}


def accuracy(correct: str) -> float:
    """The share of ones in "0110"."""
    return correct.count("1") / len(correct)


def standard_error(correct: str) -> float | None:
    """Of the accuracy, from the sample variance of its items; None for a single item."""
    count, mean = len(correct), accuracy(correct)
    return math.sqrt(mean * (1 - mean) / (count - 1)) if count > 1 else None
