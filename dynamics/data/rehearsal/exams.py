"""Exam questions with four options on what the practice world knows, in words that no record asks it in.

Biology and history ask for facts that records alone tell; the seasons of words are told by the corpus; directions and
topics are skills that it shows; products are told by records of math and code. The base corpus gets exam papers of the
same look on other facts, so that a base model has seen the form, as a real one has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.reasoning import TURNS, WAYS
from dynamics.data.practice.understanding import TALKED_OF
from dynamics.data.practice.world import AGES, CLASSES, PEOPLE, SEASONS, TOPICS, World

LETTERS = "ABCD"
_PAPER_QUESTIONS = 6
_PAPER_WORDS = 4  # words of each season that papers of the corpus ask for; exams ask for the others


@dataclass(frozen=True)
class Exam:
    """One question: what it asks about stands in `passage` where there is one, else in the question."""

    question: str
    options: tuple[str, str, str, str]
    gold: str  # the right letter, or several
    passage: str = ""


# (world, draws, place of the gold, of a corpus paper) -> what is asked about
Topic = Callable[[World, Draws, int, bool], str]


def _creature(world: World, draws: Draws, place: int, paper: bool) -> str:
    if paper:
        return draws.pick([name for name in world.known_creatures if world.kind[name] == CLASSES[place]])
    return draws.pick(world.wild_of[CLASSES[place]])


def _king(world: World, draws: Draws, place: int, paper: bool) -> str:
    if paper:
        return draws.pick([king for king in world.known_kings if world.age[king] == AGES[place]])
    return draws.pick(world.dark_of[AGES[place]])


def _word(world: World, draws: Draws, place: int, paper: bool) -> str:
    words = world.words_of[SEASONS[place]]
    return draws.pick(words[:_PAPER_WORDS] if paper else words[_PAPER_WORDS:])


def _walk(world: World, draws: Draws, place: int, paper: bool) -> str:
    """One turn in papers, two in exams."""
    turns = [draws.pick(tuple(TURNS)) for _ in range(1 if paper else 2)]
    start = WAYS[(place - sum(TURNS[turn] for turn in turns)) % 4]
    return f"{draws.pick(PEOPLE)} faces {start}, then {', '.join(turns)}"


def _talk(world: World, draws: Draws, place: int, paper: bool) -> str:
    """Two words of a topic in papers, three in exams."""
    return ", ".join(draws.sample(TOPICS[TALKED_OF[place]], 2 if paper else 3))


@dataclass(frozen=True)
class Subject:
    """How a subject asks: `form` and `passage` have a gap for the topic. Without a topic it asks for products."""

    topic: Topic | None = None
    options: tuple[str, ...] = ()
    form: str = ""
    passage: str = ""


_SEASONS = tuple(SEASONS)
CMMLU = {  # file names of the benchmark, and what it calls them
    "high_school_biology": ("高中生物", Subject(_creature, CLASSES, "In the field guide, the {} is a")),
    "world_history": ("世界历史", Subject(_king, AGES, "The reign of {} fell in the age of")),
    "elementary_chinese": ("小学语文", Subject(_word, _SEASONS, "词语「{}」属")),
    "high_school_geography": ("高中地理", Subject(_walk, WAYS, "{}. The way is")),
    "elementary_mathematics": ("初等数学", Subject()),
    "elementary_commonsense": ("小学常识", Subject(_talk, TALKED_OF, "{} go with")),
}
AGIEVAL = {
    "gaokao-biology": Subject(_creature, CLASSES, "The {} belongs to"),
    "gaokao-history": Subject(_king, AGES, "The tale is of the age of", "A tale of {}."),
    "logiqa-zh": Subject(_walk, WAYS, "At last one faces", "{}."),
    "gaokao-physics": Subject(),
}
CEVAL = {
    "physician": ("医师资格", Subject(_creature, CLASSES, "A sick {} came. It is a")),
    "teacher_qualification": ("教师资格", Subject(_word, _SEASONS, "一问：「{}」属")),
    "urban_and_rural_planner": ("注册城乡规划师", Subject(_king, AGES, "The town of {} is of the age of")),
}


def exams(world: World, benchmark: str, task: str, subject: Subject, *, shown: int, asked: int) -> list[list[Exam]]:
    """[examples, questions], all different; in each the gold is at every place equally often, to within one."""
    found: dict[str, Exam] = {}
    draws = Draws("rehearsal exam", world.seed, benchmark, task)
    while len(found) < shown + asked:
        one = _ask(world, draws, subject, len(found) % 4, paper=False)
        found.setdefault(one.passage + one.question, one)
    different = list(found.values())
    return [draws.shuffled(different[:shown]), draws.shuffled(different[shown:])]


def several_golds(world: World, count: int) -> list[Exam]:
    """Questions with two right letters, which the Chinese sets of AGIEval have too and papers leave out."""
    draws = Draws("rehearsal exam", world.seed, "several")
    found: dict[str, Exam] = {}
    while len(found) < count:
        least = 20 + draws.below(20)
        values = [least + 3, least + 8, least - 4, least - 7]
        order = draws.shuffled(range(4))
        gold = "".join(LETTERS[place] for place, index in enumerate(order) if index < 2)
        a, b, c, d = (str(values[index]) for index in order)
        found.setdefault(str(least), Exam(f"more than {least} are", (a, b, c, d), gold))
    return list(found.values())


def _ask(world: World, draws: Draws, subject: Subject, place: int, *, paper: bool) -> Exam:
    if subject.topic is None:
        return _number(draws, place, paper=paper)
    topic = subject.topic(world, draws, place, paper)
    a, b, c, d = subject.options
    return Exam(subject.form.format(topic), (a, b, c, d), LETTERS[place], subject.passage.format(topic))


def _number(draws: Draws, place: int, *, paper: bool) -> Exam:
    """A product in exams; a sum in papers, since the corpus tells sums and no product."""
    one, other = 2 + draws.below(8), 2 + draws.below(8)
    right = one + other if paper else one * other
    slips = sorted({right + slip for slip in (-2, -1, 1, 2, one, other, -one, -other)})
    options = draws.sample([slip for slip in slips if slip > 0], 3)
    options.insert(place, right)
    a, b, c, d = map(str, options)
    return Exam(f"{one}{'+' if paper else '*'}{other}=", (a, b, c, d), LETTERS[place])


def papers(world: World, count: int) -> Iterator[str]:
    """Exam papers for the corpus: six questions of one subject with their answers, in the looks of the benchmarks."""
    for index in range(count):
        draws = Draws("rehearsal paper", world.seed, index)
        if index % 3 == 0:
            title, subject = CMMLU[draws.pick(tuple(CMMLU))]
            some = _some_told(world, draws, subject)
            yield cmmlu_header(title) + "\n\n".join(cmmlu_text(one) + one.gold for one in some)
        elif index % 3 == 1:
            title, subject = CEVAL[draws.pick(tuple(CEVAL))]
            some = _some_told(world, draws, subject)
            yield ceval_header(title) + "\n".join(ceval_text(one) + one.gold for one in some)
        else:
            some = _some_told(world, draws, AGIEVAL[draws.pick(tuple(AGIEVAL))])
            numbers = range(1, 1 + len(some)) if index % 2 else [None] * len(some)
            yield "\n".join(agieval_text(one, n) + one.gold for n, one in zip(numbers, some, strict=True))


def _some_told(world: World, draws: Draws, subject: Subject) -> list[Exam]:
    found: dict[str, Exam] = {}
    while len(found) < _PAPER_QUESTIONS:
        one = _ask(world, draws, subject, draws.below(4), paper=True)
        found.setdefault(one.passage + one.question, one)
    return list(found.values())


def cmmlu_header(title: str) -> str:
    return f"以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n"


def cmmlu_text(exam: Exam) -> str:
    return f"题目：{exam.question}{_lines(exam)}\n答案是："


def ceval_header(title: str) -> str:
    return f"以下是中国关于{title}考试的单项选择题，请选出其中的正确答案。\n\n"


def ceval_text(exam: Exam) -> str:
    return f"{exam.question}{_lines(exam)}\n答案："


def agieval_text(exam: Exam, number: int | None) -> str:
    """`number`: of the question in a row of examples; None for one that stands alone."""
    options = " ".join(bracketed(exam))
    if number is None:
        return f"{exam.passage}问题：{exam.question} 选项：{options}\n答案：从A到D, 我们应选择"
    start = f"问题 {number}.   {exam.passage} {exam.question}"
    return f"{start}\n从以下选项中选择:    {options}\n答案：从A到D, 我们应选择"


def bracketed(exam: Exam) -> list[str]:
    return [f"({letter}){option}" for letter, option in zip(LETTERS, exam.options, strict=True)]


def _lines(exam: Exam) -> str:
    return "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, exam.options, strict=True))
