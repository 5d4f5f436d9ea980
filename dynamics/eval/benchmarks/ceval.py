"""C-Eval: exam questions with five worked examples as turns of a chat, from its own CSV files or from DoIT's records.

DoIT asks three of its parts as 12 messages: five times a question and its answer, then a question and its answer. The
text of its files is not known to us, so a prompt that is made here from the CSV files follows C-Eval's own layout for
chat models without its system turn, and records in DoIT's layout are asked as they are.

Source: hkust-nlp/ceval (its evaluator for chat models and its names of subjects); evaluate/utils.py of
ChiyuSONG/dynamics-of-instruction-tuning for the 12 messages.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynamics.data.lines import read_lines
from dynamics.errors import UserError
from dynamics.eval.benchmarks.benchmark import (
    LETTERS,
    Benchmark,
    Contents,
    LengthOf,
    LetterKind,
    Question,
    assistant,
    chosen_tasks,
    existing_folder,
    user,
    worked_examples,
)
from dynamics.eval.benchmarks.tables import Row, read_rows
from dynamics.record import Turn, parse_record

DOIT_PARTS = ("physician", "teacher_qualification", "urban_and_rural_planner")
SUBJECTS = {
    "computer_network": "计算机网络",
    "operating_system": "操作系统",
    "computer_architecture": "计算机组成",
    "college_programming": "大学编程",
    "college_physics": "大学物理",
    "college_chemistry": "大学化学",
    "advanced_mathematics": "高等数学",
    "probability_and_statistics": "概率统计",
    "discrete_mathematics": "离散数学",
    "electrical_engineer": "注册电气工程师",
    "metrology_engineer": "注册计量师",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理",
    "high_school_chemistry": "高中化学",
    "high_school_biology": "高中生物",
    "middle_school_mathematics": "初中数学",
    "middle_school_biology": "初中生物",
    "middle_school_physics": "初中物理",
    "middle_school_chemistry": "初中化学",
    "veterinary_medicine": "兽医学",
    "college_economics": "大学经济学",
    "business_administration": "工商管理",
    "marxism": "马克思主义基本原理",
    "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
    "education_science": "教育学",
    "teacher_qualification": "教师资格",
    "high_school_politics": "高中政治",
    "high_school_geography": "高中地理",
    "middle_school_politics": "初中政治",
    "middle_school_geography": "初中地理",
    "modern_chinese_history": "近代史纲要",
    "ideological_and_moral_cultivation": "思想道德修养与法律基础",
    "logic": "逻辑学",
    "law": "法学",
    "chinese_language_and_literature": "中国语言文学",
    "art_studies": "艺术学",
    "professional_tour_guide": "导游资格",
    "legal_professional": "法律职业资格",
    "high_school_chinese": "高中语文",
    "high_school_history": "高中历史",
    "middle_school_history": "初中历史",
    "civil_servant": "公务员",
    "sports_science": "体育学",
    "plant_protection": "植物保护",
    "basic_medicine": "基础医学",
    "clinical_medicine": "临床医学",
    "urban_and_rural_planner": "注册城乡规划师",
    "accountant": "注册会计师",
    "fire_engineer": "注册消防工程师",
    "environmental_impact_assessment_engineer": "环境影响评价工程师",
    "tax_accountant": "税务师",
    "physician": "医师资格",
}
_OPTIONS = tuple(LETTERS[:4])
_COLUMNS = ("id", "question", *_OPTIONS, "answer")


@dataclass(frozen=True, kw_only=True)
class CEvalQuestion(Question):
    """Examples and question as turns; the header stands at the beginning of whichever comes first."""

    header: str
    examples: tuple[tuple[str, str], ...]  # (user, assistant)
    text: str

    @property
    def max_shots(self) -> int:
        return len(self.examples)

    def turns(self, shots: int) -> tuple[Turn, ...]:
        shown = [turn for asked, answer in self.examples[:shots] for turn in (user(asked), assistant(answer))]
        first, *others = (*shown, user(self.text))
        return (user(self.header + first.content), *others)

    def fitted(self, shots: int, length_of: LengthOf, max_length: int) -> tuple[Turn, ...] | None:
        """The last examples go first. No published rule is known: their prompts of five examples fit 2,048 tokens."""
        for count in range(min(shots, self.max_shots), -1, -1):
            turns = self.turns(count)
            if length_of(turns) <= max_length:
                return turns
        return None


@dataclass(frozen=True, kw_only=True)
class CEval(Benchmark):
    """C-Eval, as its CSV files or as DoIT's records.

    `data_dir` holds dev/{subject}_dev.csv (the examples) and val/{subject}_val.csv, in the two folders or in
    `data_dir` itself; columns id, question, A, B, C, D, answer. Or it holds ceval_{subject}.json with DoIT's records of
    12 messages (in `data_dir`, its test/ or its curated/test/), whose examples are the messages before the last two.
    Two files of one subject are an error. A file of none of C-Eval's 52 subjects is read only where `tasks` names it;
    otherwise one that is spelt like a subject is an error and any other is counted among the unknown. The test
    questions of C-Eval have no published answers.
    """

    shots: tuple[int, ...] = (5,)
    letters: LetterKind = "answer"

    @property
    def name(self) -> str:
        return "ceval"

    def read(self) -> Contents:
        folder = existing_folder(self.name, self.data_dir)
        files: dict[str, Path] = {}
        for place in ("val", ".", "test", "curated/test"):
            for path in sorted((folder / place).iterdir()) if (folder / place).is_dir() else ():
                task = _task_of(path, place)
                if task is None:
                    continue
                if task in files:
                    raise UserError(f"ceval: {task} is twice in {folder}: {files[task]} and {path}; keep one of them")
                files[task] = path
        unknown = tuple(sorted(files.keys() - SUBJECTS.keys() - set(self.tasks)))
        for task in () if self.tasks else unknown:
            if near := difflib.get_close_matches(task, SUBJECTS, n=1, cutoff=0.8):
                raise UserError(
                    f"{files[task]}: {task!r} is none of C-Eval's 52 subjects (did you mean {near[0]!r}?); rename the "
                    f"file, or give tasks=({task!r},) to have it read"
                )
        # The parts of DoIT first, then C-Eval's order, then what is asked for by a name of the user's own.
        known = tuple(dict.fromkeys((*DOIT_PARTS, *SUBJECTS, *self.tasks)))
        tasks, missing = chosen_tasks(self.name, self.tasks, known, files, folder)
        questions: list[Question] = []
        for task in tasks:
            path = files[task]
            questions.extend(self._table(task, path) if path.suffix == ".csv" else _records(task, path))
            fewest = min(question.max_shots for question in questions if question.task == task)
            if fewest < max(self.shots):
                raise UserError(
                    f"{files[task]}: {task} has {fewest} examples and shots is {self.shots}; ask for fewer shots"
                )
        parts = tuple(one for one in missing if one in DOIT_PARTS)
        return Contents(questions=tuple(questions), missing=parts, unknown=unknown)

    def _table(self, task: str, path: Path) -> Iterator[Question]:
        examples = ()
        if any(self.shots):
            folder = path.parent.parent / "dev" if path.parent.name == "val" else path.parent
            rows = read_rows(worked_examples(folder / f"{task}_dev.csv"), _COLUMNS)
            examples = tuple((_asked(row), row.letter("answer", _OPTIONS)) for row in rows)
        for row in read_rows(path, _COLUMNS):
            yield CEvalQuestion(
                task=task,
                id=f"{task}/{row.cell('id')}",
                options=_OPTIONS,
                gold=row.letter("answer", _OPTIONS),
                header=f"以下是中国关于{SUBJECTS.get(task, task)}考试的单项选择题，请选出其中的正确答案。\n\n",
                examples=examples,
                text=_asked(row),
            )


def _task_of(path: Path, place: str) -> str | None:
    """The subject whose questions a file of that place holds; None for all other files."""
    if path.match("*_val.csv") and place in ("val", "."):
        return path.stem.removesuffix("_val")
    if path.match("ceval_*.json") and place != "val":
        return path.stem.removeprefix("ceval_").removesuffix("_test").removesuffix("_fshot")
    return None


def _asked(row: Row) -> str:
    options = "".join(f"\n{letter}. {row.cell(letter)}" for letter in _OPTIONS)
    return f"{row.cell('question')}{options}\n答案："


def _records(task: str, path: Path) -> Iterator[Question]:
    """The questions of DoIT's records: all messages but the last two are examples, the last is the gold letter."""
    for line in read_lines(path):
        where = f"{path}:{line.line}"
        if line.problem:
            raise UserError(f"{where}: {line.problem}")
        record = parse_record(line.data, where=where, ability=f"ceval_{task}")
        *shown, question, gold = record.messages
        if shown and shown[0].role != "user":
            raise UserError(f"{where}: messages[0].role is {shown[0].role!r}; the examples begin with a user's turn")
        letter = gold.content.strip()
        if letter not in _OPTIONS:
            raise UserError(
                f"{where}: messages[{len(shown) + 1}].content is {letter!r:.40}; it must be a letter A to D"
            )
        pairs = zip(shown[::2], shown[1::2], strict=True)
        yield CEvalQuestion(
            task=task,
            id=f"{task}/{line.line}",
            options=_OPTIONS,
            gold=letter,
            header="",
            examples=tuple((asked.content, answer.content) for asked, answer in pairs),
            text=question.content,
        )
