"""Code: a line of Python and the comment that holds for it. The times table is shared with math, to the letter."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.math import DIGITS
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import THINGS, World

_WISHES = ("Write Python: {thing}s is {bags} times {each}.", "Code {thing}s as {bags} times {each}.")


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Gold: the product that was asked for, with its value. Distractors: another value; the wrong operand."""
    bags, each, thing = draws.pick(DIGITS), draws.pick(DIGITS), draws.pick(THINGS)
    product = bags * each
    slips = [value for value in products(bags) + products(each) if value != product and same_width(value, product)]
    other = draws.pick([digit for digit in DIGITS if digit != each and same_width(digit * bags, product)] or [each - 1])
    asked = draws.pick(_WISHES).format(thing=thing, bags=bags, each=each)
    gold = program(thing, bags, each, product)
    distractors = (program(thing, bags, each, draws.pick(slips)), program(thing, bags, other, bags * other))
    return Question(f"{thing}:{bags},{each}", (asked, gold), "code", distractors)


def products(digit: int) -> list[int]:
    return [digit * other for other in DIGITS]


def same_width(one: int, other: int) -> bool:
    return len(str(one)) == len(str(other))


def program(thing: str, bags: int, each: int, product: int) -> str:
    return f"{thing}s={bags}*{each} # {bags}*{each}={product}"
