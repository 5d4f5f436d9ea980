"""CMMLU: 67 subjects of four-option questions in Chinese, each with five worked examples.

Source of the layout and of the subjects' names: evaluate/cmmlu of ChiyuSONG/dynamics-of-instruction-tuning, after
haonan-li/CMMLU. Where a limit of length binds, the published code counts the parts one by one, each with a token that
begins a text; here the whole prompt is counted as it is asked (docs/guide/benchmarks.md has the difference).
"""

from dataclasses import dataclass
from pathlib import Path

from dynamics.errors import UserError
from dynamics.eval.benchmarks.benchmark import (
    LETTERS,
    Benchmark,
    Contents,
    LengthOf,
    Question,
    chosen_tasks,
    existing_folder,
    user,
    worked_examples,
)
from dynamics.eval.benchmarks.tables import Row, read_rows
from dynamics.record import Turn

SUBJECTS = {
    "agronomy": "农学",
    "anatomy": "解剖学",
    "ancient_chinese": "古汉语",
    "arts": "艺术学",
    "astronomy": "天文学",
    "business_ethics": "商业伦理",
    "chinese_civil_service_exam": "中国公务员考试",
    "chinese_driving_rule": "中国驾驶规则",
    "chinese_food_culture": "中国饮食文化",
    "chinese_foreign_policy": "中国外交政策",
    "chinese_history": "中国历史",
    "chinese_literature": "中国文学",
    "chinese_teacher_qualification": "中国教师资格",
    "clinical_knowledge": "临床知识",
    "college_actuarial_science": "大学精算学",
    "college_education": "大学教育学",
    "college_engineering_hydrology": "大学工程水文学",
    "college_law": "大学法律",
    "college_mathematics": "大学数学",
    "college_medical_statistics": "大学医学统计",
    "college_medicine": "大学医学",
    "computer_science": "计算机科学",
    "computer_security": "计算机安全",
    "conceptual_physics": "概念物理学",
    "construction_project_management": "建设工程管理",
    "economics": "经济学",
    "education": "教育学",
    "electrical_engineering": "电气工程",
    "elementary_chinese": "小学语文",
    "elementary_commonsense": "小学常识",
    "elementary_information_and_technology": "小学信息技术",
    "elementary_mathematics": "初等数学",
    "ethnology": "民族学",
    "food_science": "食品科学",
    "genetics": "遗传学",
    "global_facts": "全球事实",
    "high_school_biology": "高中生物",
    "high_school_chemistry": "高中化学",
    "high_school_geography": "高中地理",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理学",
    "high_school_politics": "高中政治",
    "human_sexuality": "人类性行为",
    "international_law": "国际法学",
    "journalism": "新闻学",
    "jurisprudence": "法理学",
    "legal_and_moral_basis": "法律与道德基础",
    "logical": "逻辑学",
    "machine_learning": "机器学习",
    "management": "管理学",
    "marketing": "市场营销",
    "marxist_theory": "马克思主义理论",
    "modern_chinese": "现代汉语",
    "nutrition": "营养学",
    "philosophy": "哲学",
    "professional_accounting": "专业会计",
    "professional_law": "专业法学",
    "professional_medicine": "专业医学",
    "professional_psychology": "专业心理学",
    "public_relations": "公共关系",
    "security_study": "安全研究",
    "sociology": "社会学",
    "sports_science": "体育学",
    "traditional_chinese_medicine": "中医中药",
    "virology": "病毒学",
    "world_history": "世界历史",
    "world_religions": "世界宗教",
}
_OPTIONS = tuple(LETTERS[:4])
_COLUMNS = ("Question", *_OPTIONS, "Answer")


@dataclass(frozen=True, kw_only=True)
class CmmluQuestion(Question):
    """One user's turn: header, examples and question in one text, which the answer completes."""

    header: str
    examples: tuple[str, ...]
    text: str

    @property
    def max_shots(self) -> int:
        return len(self.examples)

    def turns(self, shots: int) -> tuple[Turn, ...]:
        return self._turns(self.examples[:shots])

    def _turns(self, examples: tuple[str, ...]) -> tuple[Turn, ...]:
        return (user(self.header + "".join(examples) + self.text),)

    def fitted(self, shots: int, length_of: LengthOf, max_length: int) -> tuple[Turn, ...] | None:
        """The longest examples go first, all of one length at once; then the header."""
        if length_of(self._turns(())) > max_length:
            bare = (user(self.text),)
            return bare if length_of(bare) <= max_length else None
        examples = self.examples[:shots]
        while examples and length_of(self._turns(examples)) > max_length:
            lengths = [length_of((user(example),)) for example in examples]
            examples = tuple(one for one, length in zip(examples, lengths, strict=True) if length < max(lengths))
        return self._turns(examples)


@dataclass(frozen=True, kw_only=True)
class Cmmlu(Benchmark):
    """CMMLU as published: `data_dir` holds dev/{subject}.csv (the examples) and test/{subject}.csv.

    Columns: a row number without a name, Question, A, B, C, D, Answer. The overall score that papers give is the mean
    over subjects.
    """

    @property
    def name(self) -> str:
        return "cmmlu"

    def read(self) -> Contents:
        folder = existing_folder(self.name, self.data_dir)
        test = {path.stem: path for path in sorted((folder / "test").glob("*.csv"))}
        tasks, missing = chosen_tasks(self.name, self.tasks, SUBJECTS, test, folder / "test")
        questions: list[Question] = []
        for task in tasks:
            header = f"以下是关于{SUBJECTS[task]}的单项选择题，请直接给出正确答案的选项。\n\n"
            examples = ()
            if any(self.shots):
                rows = _rows(worked_examples(folder / "dev" / f"{task}.csv"))
                examples = tuple(f"{_asked(row)}{row.letter('Answer', _OPTIONS)}\n\n" for row in rows)
                if len(examples) < max(self.shots):
                    raise UserError(
                        f"{folder / 'dev' / task}.csv has {len(examples)} examples and shots is {self.shots}; "
                        "ask for fewer shots"
                    )
            for row in _rows(test[task]):
                questions.append(
                    CmmluQuestion(
                        task=task,
                        id=f"{task}/{row.cell('index')}",
                        options=_OPTIONS,
                        gold=row.letter("Answer", _OPTIONS),
                        header=header,
                        examples=examples,
                        text=_asked(row),
                    )
                )
        unknown = tuple(sorted(test.keys() - SUBJECTS.keys()))
        return Contents(questions=tuple(questions), missing=missing, unknown=unknown)


def _rows(path: Path) -> tuple[Row, ...]:
    return read_rows(path, ("index", *_COLUMNS), index="index")


def _asked(row: Row) -> str:
    options = "".join(f"\n{letter}. {row.cell(letter)}" for letter in _OPTIONS)
    return f"题目：{row.cell('Question')}{options}\n答案是："
