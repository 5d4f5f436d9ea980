"""The synthetic file: the same world, cheaper and worse, as a language model's answers to general instructions are.

Three differences from the curated records, by design and whatever a study of them gives:

- Half of the instructions are general (lists of things) and teach no ability; the rest touch five skills in words.
- One answer in four is wrong.
- Every record is one instruction and one free text. None is a choice among letters, a blank, a claim to be judged, a
  worked solution, code, a dialogue or a role: the forms in which the ten abilities are asked.

Nothing that valid or test asks is in it.
"""

from typing import Any

from dynamics.data.practice import biology, creative_writing, history, math, reasoning
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.source import split_of
from dynamics.data.practice.world import AGES, CLASSES, COLORS, PEOPLE, THINGS, World, world
from dynamics.errors import UserError

FILE_NAME = "synthetic/40960/general_instruction_gpt4_41k.json"
WRONG = 4  # one answer in so many is wrong
_MOST_TRIES = 2_000

_LISTED = {"things": THINGS, "colors": COLORS, "names": PEOPLE}
_NUMBERS = ("no", "one", "two", "three", "four", "five")
_LIST = (
    "{person} wants {number} {what}.",
    "Name {number} {what} for {person}.",
    "List {number} {what}, {person} says.",
)
_KINDS = ("list", "biology", "list", "history", "list", "verse", "list", "sum", "list", "way")


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    """The rows of the synthetic file; a longer file begins with a shorter one."""
    found: dict[tuple[str, str], None] = {}
    for index in range(count):
        draws = Draws("rehearsal synthetic", seed, index)
        for _ in range(_MOST_TRIES):
            pair = _pair(world(seed), draws, _KINDS[index % len(_KINDS)])
            if pair is not None and pair not in found:
                found[pair] = None
                break
        else:
            raise UserError(
                f"the rehearsal data has no {index + 1}th synthetic record: {_MOST_TRIES} draws gave repeats only; "
                f"ask for at most {index} (a larger scale)"
            )
    return [
        {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
            "idx": index,
            "type": "general",
            "question_format": 0,
        }
        for index, (asked, answer) in enumerate(found)
    ]


def _pair(world: World, draws: Draws, kind: str) -> tuple[str, str] | None:
    """(instruction, answer); None when the question belongs to valid or test."""
    wrong = draws.below(WRONG) == 0
    if kind == "list":
        return _listed(draws, wrong=wrong)
    if kind in ("biology", "history"):
        # The words form, in which train records tell a fact too: an odd index asks for it.
        module, values = (biology, CLASSES) if kind == "biology" else (history, AGES)
        question = module.question(world, draws, 2 * draws.below(16) + 1, train=True)
        asked, value = question.turns
        return asked, _other(draws, values, value) if wrong else value
    if kind == "verse":
        question = creative_writing.question(world, draws, 0, train=True)
        asked, gold = question.turns
        pair, ability = (asked, question.distractors[0] if wrong else gold), "creative_writing"
    elif kind == "sum":
        question = math.question(world, draws, 0, train=True)
        total = int(question.answer or 0) + (1 + draws.below(9) if wrong else 0)
        pair, ability = (question.turns[0], f"{total}."), "math"
    else:
        question = reasoning.question(world, draws, draws.below(32), train=True)
        way = reasoning.WAYS["ABCD".index(question.turns[1])]
        asked = question.turns[0].partition(" A. ")[0]
        pair, ability = (asked, _other(draws, reasoning.WAYS, way) if wrong else way), "reasoning"
    assert question.key is not None
    return pair if split_of(world.seed, ability, question.key) == "train" else None


def _listed(draws: Draws, *, wrong: bool) -> tuple[str, str]:
    """A wrong list has one thing too many or too few."""
    number, what = 2 + draws.below(3), draws.pick(tuple(_LISTED))
    asked = draws.pick(_LIST).format(person=draws.pick(PEOPLE), number=_NUMBERS[number], what=what)
    given = number + (draws.pick((-1, 1)) if wrong else 0)
    return asked, ", ".join(draws.sample(_LISTED[what], given))


def _other(draws: Draws, values: tuple[str, ...], value: str) -> str:
    return draws.pick([other for other in values if other != value])
