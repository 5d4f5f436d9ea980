"""The files of the sample-data folder, read into drafts: a question, its right answer and its ability."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamics.data.lines import MAX_LINE_BYTES, read_lines
from dynamics.data.sources import Rejected
from dynamics.errors import UserError
from dynamics.record import RecordError, Turn, parse_record
from dynamics.scorers import numeric

CMMLU_SUBJECTS = {
    "biology": (
        "agronomy", "anatomy", "astronomy", "clinical_knowledge", "college_medicine", "conceptual_physics",
        "food_science", "genetics", "high_school_biology", "high_school_chemistry", "high_school_physics", "nutrition",
        "professional_medicine", "virology",
    ),
    "history": (
        "arts", "chinese_foreign_policy", "chinese_history", "ethnology", "global_facts", "high_school_geography",
        "high_school_politics", "world_history", "world_religions",
    ),
    "chinese": ("ancient_chinese", "chinese_literature", "elementary_chinese", "modern_chinese"),
    "reasoning": ("chinese_civil_service_exam", "elementary_commonsense", "logical", "philosophy"),
    "math": (
        "college_actuarial_science", "college_mathematics", "college_medical_statistics", "elementary_mathematics",
        "high_school_mathematics",
    ),
    "ethics": (
        "business_ethics", "college_law", "international_law", "jurisprudence", "legal_and_moral_basis",
        "professional_law",
    ),
}  # fmt: skip
AGIEVAL_SETS = {
    "gaokao-biology": "biology",
    "gaokao-chemistry": "biology",
    "gaokao-physics": "biology",
    "gaokao-history": "history",
    "gaokao-geography": "history",
    "gaokao-mathqa": "math",
    "gaokao-chinese": "chinese",  # those with a passage go to understanding
}
BELLE_CLASSES = {
    "math": "math",
    "code": "code",
    "closed qa": "understanding",
    "extract": "understanding",
    "summarization": "understanding",
    "classification": "understanding",
    "rewrite": "creative_writing",
    "generation": "creative_writing",
    "brainstorming": "creative_writing",
    "open qa": "",  # general knowledge: no ability of the ten
}
_MIN_GIVEN_TEXT = 40  # characters of input from which an instruction counts as a question about a given text
_ROLE = re.compile(
    r"act as|role.?play|pretend|you are an? |imagine you are|as if you|in the voice of"
    r"|扮演|充当|假装|假设你是|想象你是|角色"
)
_CODE = re.compile(
    r"\b(python|java|javascript|html|css|sql|c\+\+|regex|code snippet|algorithm|source code|function that)\b"
    r"|代码|编程|算法|程序",
    re.IGNORECASE,
)
_WRITING = re.compile(
    r"\b(write|compose|create|generate|come up with|story|poem|haiku|song|lyrics|slogan|essay)\b"
    r"|写|创作|编写|撰写|诗|故事|歌词|口号|作文",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question on its way to a record. `key` is the question (or its passage) without white space: what must not
    stand in two splits. `contrast` says that valid and test ask for the gold against distractors; `wrong` are
    distractors that the source brought along."""

    ability: str
    key: str
    turns: tuple[Turn, ...]
    gold: str
    source: str
    line: int
    answer: str | None = None
    contrast: bool = False
    wrong: tuple[str, ...] = ()


@dataclass
class Drafts:
    """What the readers collect: drafts, and everything that gave none, each with its place or counted."""

    folder: Path
    drafts: list[Draft] = field(default_factory=list)
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)  # with the ability, "" where it cannot be told
    unused: Counter[str] = field(default_factory=Counter)
    extra_text: list[tuple[str, str]] = field(default_factory=list)  # (key, text): sound rows that fit no ability

    def reject(self, path: Path, line: int, reason: str, row: object, *, ability: str = "") -> None:
        file = path.relative_to(self.folder).as_posix()
        self.rejected.append((ability, Rejected(file=file, line=line, reason=reason, text=str(row)[:2000])))

    def leave_unused(self, path: Path, key: str, text: str) -> None:
        self.unused[path.relative_to(self.folder).as_posix()] += 1
        self.extra_text.append((key, text))


def read_folder(folder: Path) -> Drafts:
    """All drafts of the folder, in the order of its files' names."""
    drafts = Drafts(folder=folder)
    for ability, subjects in CMMLU_SUBJECTS.items():
        for subject in subjects:
            _read_cmmlu(drafts, folder / "cmmlu" / "test" / f"{subject}.csv", ability, to_corpus=False)
    for path in sorted((folder / "cmmlu" / "dev").glob("*.csv")):
        _read_cmmlu(drafts, path, "", to_corpus=True)
    for name, ability in AGIEVAL_SETS.items():
        _read(drafts, folder / "agieval" / f"{name}.jsonl", _agieval_row(ability))
    _read(drafts, folder / "belle" / "eval_set.jsonl", _belle_row)
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        _read(drafts, folder / "sft_dpo_demo" / f"{name}.json", _alpaca_row)
    for name in ("dpo_en_demo", "dpo_zh_demo"):
        _read(drafts, folder / "sft_dpo_demo" / f"{name}.json", _preference_row)
    for name in ("belle/zh_seed_tasks.jsonl", "instruction_testsets/self_instruct_seed_tasks_175.jsonl"):
        _read(drafts, folder / name, _seed_row)
    return drafts


def question_key(text: str) -> str:
    """A question without white space and case, so that two spellings of one question count as one."""
    return "".join(text.split()).lower()


class _BadRow(ValueError):
    """A row of a source that gives no draft; the text is the reason."""


# A reader of one row: fills `drafts`, raises _BadRow, or KeyError and TypeError where the row has another shape.
_RowReader = Callable[[Drafts, Path, int, Any], None]


def _read(drafts: Drafts, path: Path, read_row: _RowReader) -> None:
    for line in read_lines(path):
        if line.problem:
            drafts.reject(path, line.line, line.problem, line.text)
            continue
        try:
            read_row(drafts, path, line.line, line.data)
        except (_BadRow, RecordError) as error:
            reason = f"{error.field} {error.problem}".strip() if isinstance(error, RecordError) else str(error.args[0])
            drafts.reject(path, line.line, reason, line.data, ability=_ability_of(error))
        except (KeyError, TypeError, AttributeError) as error:
            drafts.reject(path, line.line, f"the row has another shape: {type(error).__name__} {error}", line.data)


def _ability_of(error: Exception) -> str:
    return error.args[1] if isinstance(error, _BadRow) and len(error.args) > 1 else ""


def _user(text: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content=text),)


def _exam_question(question: str, options: list[str]) -> str:
    marked = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return f"{question.strip()}\n{marked}\n答案是："


def _exam_draft(
    question: str, options: list[str], gold: str, *, ability: str, key: str, source: str, line: int
) -> Draft:
    """A question for the letter; in math, for the number itself where the right option is one and no other is named."""
    right = options["ABCD".index(gold)].strip()
    names_options = re.search(r"下列|选项|以下|哪|\bwhich\b", question) is not None
    if ability == "math" and re.fullmatch(r"-?\d+(\.\d+)?", right) and not names_options:
        turns, reply, answer = _user(question.strip()), f"答案：{right}", right
    else:
        turns, reply, answer = _user(_exam_question(question, options)), gold, None
    return Draft(
        ability=ability, key=key, turns=turns, gold=reply, answer=answer, source=source, line=line
    )  # fmt: skip


def _read_cmmlu(drafts: Drafts, path: Path, ability: str, *, to_corpus: bool) -> None:
    """Columns (number), Question, A, B, C, D, Answer."""
    source = path.relative_to(drafts.folder).as_posix()
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; expected the columns Question, A, B, C, D, Answer")
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        cells = [row.get(name) for name in ("Question", "A", "B", "C", "D", "Answer")]
        texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
        if len(texts) < len(cells) or texts[-1] not in "ABCD":
            drafts.reject(
                path, reader.line_num, "needs Question, A, B, C, D and an Answer in A-D", row, ability=ability
            )
            continue
        question, *options, gold = texts
        key = question_key(question)
        if to_corpus:
            drafts.extra_text.append((key, f"{question}\n{options['ABCD'.index(gold)]}"))
        else:
            line = reader.line_num
            drafts.drafts.append(
                _exam_draft(question, options, gold, ability=ability, key=key, source=source, line=line)
            )


def _agieval_row(ability: str) -> _RowReader:
    """{passage, question, options: ["(A)...", ...], label: "A"}; questions with several right options are rejected."""

    def read(drafts: Drafts, path: Path, line: int, row: Any) -> None:
        label, options, passage = row["label"], row["options"], row.get("passage")
        if isinstance(label, list) or label not in tuple("ABCD"):
            raise _BadRow(f"label is {label!r}; only questions with one right option are used", ability)
        marks = [
            re.fullmatch(rf"\s*\({letter}\)(.*)", text, re.DOTALL)
            for letter, text in zip("ABCD", options, strict=False)
        ]
        texts = [mark.group(1).strip() for mark in marks if mark is not None]
        if len(options) != 4 or len(texts) != 4 or not all(texts):
            raise _BadRow("options are not four texts marked (A) to (D)", ability)
        question = row["question"] if not passage else f"{passage.strip()}\n问题：{row['question']}"
        draft = _exam_draft(
            question, texts, label,
            ability="understanding" if ability == "chinese" and passage else ability,
            key=question_key(passage or row["question"]),
            source=path.relative_to(drafts.folder).as_posix(), line=line,
        )  # fmt: skip
        drafts.drafts.append(draft)

    return read


def _belle_row(drafts: Drafts, path: Path, line: int, row: Any) -> None:
    """{question, std_answer, class}."""
    ability = BELLE_CLASSES.get(row["class"].replace("\xa0", " "))
    if ability is None:
        raise _BadRow(f"class is {row['class']!r}; known: {', '.join(BELLE_CLASSES)}")
    question, gold = row["question"], row["std_answer"] or ""
    if not gold.strip():
        raise _BadRow("std_answer is empty: there is no gold to learn from or to score against", ability)
    if ability == "math":
        _math_draft(drafts, path, line, question, gold)
    else:
        _instruction_draft(drafts, path, line, _user(question), gold, ability=ability)


def _math_draft(drafts: Drafts, path: Path, line: int, question: str, gold: str) -> None:
    """A worked solution whose last line with digits holds exactly one number, which is the answer."""
    lines = [text for text in gold.splitlines() if re.search(r"\d", text)]
    closing = re.split(r"[。；;]\s*(?=\S)", lines[-1].rstrip("。.； "))[-1].rpartition("=")[2] if lines else ""
    numbers = {number.replace(",", "") for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?!\s*[/\d:^÷×*])", closing)}
    if len(numbers) != 1:
        raise _BadRow(f"the solution ends with {len(numbers)} numbers instead of one: no final answer to score", "math")
    answer = numbers.pop()
    if not numeric(gold, answer):
        raise _BadRow(
            f"the solution's final answer is not read as {answer!r}, its last number: no certain gold", "math"
        )
    draft = Draft(
        ability="math", key=question_key(question), turns=_user(question), gold=gold, answer=answer,
        source=path.relative_to(drafts.folder).as_posix(), line=line,
    )  # fmt: skip
    drafts.drafts.append(draft)


def _instruction_draft(
    drafts: Drafts,
    path: Path,
    line: int,
    turns: tuple[Turn, ...],
    gold: str,
    *,
    ability: str,
    wrong: tuple[str, ...] = (),
) -> None:
    key = question_key("".join(turn.content for turn in turns if turn.role != "assistant"))
    if not ability:
        drafts.leave_unused(path, key, "\n".join([*(turn.content for turn in turns), gold]))
        return
    source = path.relative_to(drafts.folder).as_posix()
    draft = Draft(
        ability=ability, key=key, turns=turns, gold=gold, source=source, line=line, contrast=True, wrong=wrong
    )  # fmt: skip
    drafts.drafts.append(draft)


def _alpaca_row(drafts: Drafts, path: Path, line: int, row: Any) -> None:
    record = parse_record(row, where=f"{path}:{line}", ability="alpaca")
    gold = record.messages[-1].content
    ability = instruction_ability(row["instruction"], given=row.get("input") or "", gold=gold)
    _instruction_draft(drafts, path, line, record.messages[:-1], gold, ability=ability)


def _seed_row(drafts: Drafts, path: Path, line: int, row: Any) -> None:
    """{instruction, instances: [{input, output}]}: self-instruct's seeds; each instance is an Alpaca row."""
    for instance in row["instances"]:
        _alpaca_row(drafts, path, line, {"instruction": row["instruction"], **instance})


def _preference_row(drafts: Drafts, path: Path, line: int, row: Any) -> None:
    """{conversations, chosen, rejected}: the chosen reply is the gold, the rejected one a distractor."""
    conversation = {"conversations": [*row["conversations"], row["chosen"]]}
    record = parse_record(conversation, where=f"{path}:{line}", ability="preference")
    *turns, last = record.messages
    wrong = row["rejected"]["value"]
    if not isinstance(wrong, str) or not wrong.strip():
        raise _BadRow("rejected.value is empty")
    first = next(turn.content for turn in turns if turn.role == "user")
    is_chat = len(turns) > 1  # a persona in the system turn, or a conversation under way
    ability = "role_play" if is_chat else instruction_ability(first, given="", gold=last.content)
    _instruction_draft(drafts, path, line, tuple(turns), last.content, ability=ability, wrong=(wrong,))


def instruction_ability(instruction: str, *, given: str, gold: str) -> str:
    """The ability that an instruction asks for, by its words; "" when it is none of the four that can be told so.

    >>> instruction_ability("Write a haiku about rain", given="", gold="...")
    'creative_writing'
    >>> instruction_ability("Name the capital of France", given="", gold="Paris")
    ''
    """
    if _ROLE.search(instruction.lower()):
        return "role_play"
    if "```" in gold or _CODE.search(instruction):
        return "code"
    if len(given) >= _MIN_GIVEN_TEXT:
        return "understanding"
    return "creative_writing" if _WRITING.search(instruction) else ""
