"""The rehearsal's instructions: list some words under one to five constraints, which a rule can check.

    fox owl ant ; backwards ; upper ; end ok      ->  ANT OWL FOX ok

A level has as many constraints as its number and those of the level before it among them. The answer is computed, so
it is the only right one, and so is the answer that breaks exactly one constraint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dynamics.data.practice.draws import Draws

WORDS = (
    "fox", "owl", "ant", "bee", "cow", "hen", "pig", "rat", "sun", "map", "cup", "box", "pen", "hat", "oak", "sea",
)  # fmt: skip
NUM_WORDS = 3  # of a list
FEWER = 2  # of the list, where only so many are asked for
JOINERS = ("and", "or", "plus")
OPENINGS = ("yes", "well", "here")
ENDINGS = ("ok", "done", "bye")

Name = Literal["count", "backwards", "upper", "join", "start", "end"]
_VALUES: dict[Name, tuple[str, ...]] = {
    "count": ("",),
    "backwards": ("",),
    "upper": ("",),
    "join": JOINERS,
    "start": OPENINGS,
    "end": ENDINGS,
}
NAMES: tuple[Name, ...] = tuple(_VALUES)
_TEXTS: dict[Name, str] = {
    "count": "two",
    "backwards": "backwards",
    "upper": "upper",
    "join": "join {}",
    "start": "start {}",
    "end": "end {}",
}


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One demand on an answer; `value` is a word of its own kind, or ''."""

    name: Name
    value: str = ""

    @property
    def text(self) -> str:
        return _TEXTS[self.name].format(self.value)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Words to list, and the constraints in the order in which the levels add them."""

    words: tuple[str, ...]
    constraints: tuple[Constraint, ...]

    @property
    def query(self) -> str:
        """The instruction without constraints, which its levels share."""
        return " ".join(self.words)

    @property
    def question(self) -> str:
        return " ; ".join([self.query, *(constraint.text for constraint in self.constraints)])

    @property
    def answer(self) -> str:
        """Counted off first, then turned round, then written as the rest says."""
        value = {constraint.name: constraint.value for constraint in self.constraints}
        words = list(self.words)
        if "count" in value:
            words = words[:FEWER]
        if "backwards" in value:
            words.reverse()
        if "upper" in value:
            words = [word.upper() for word in words]
        listed = f" {value['join']} ".join(words) if "join" in value else " ".join(words)
        return " ".join(part for part in (value.get("start"), listed, value.get("end")) if part)

    def level(self, level: int) -> "Task":
        """The same with its first `level` constraints."""
        return replace(self, constraints=self.constraints[:level])

    def without(self, constraint: Constraint) -> "Task":
        return replace(self, constraints=tuple(one for one in self.constraints if one != constraint))


def task(draws: Draws) -> Task:
    """Different words, and five different constraints of the six there are."""
    words = tuple(draws.sample(WORDS, NUM_WORDS))
    names = draws.sample(NAMES, 5)
    constraints = tuple(Constraint(name=name, value=draws.pick(_VALUES[name])) for name in names)
    return Task(words=words, constraints=constraints)


def followed(asked: Task, answer: str) -> dict[Name, bool]:
    """Which of the constraints an answer follows, each judged by itself, whatever else is wrong with it.

    Words of the list are told from the rest by being in WORDS. The right answer follows all; an answer that follows
    all may still be wrong, since a word may be listed that was not asked for.

    >>> asked = Task(words=("fox", "owl", "ant"), constraints=(Constraint(name="upper"),))
    >>> followed(asked, "FOX OWL ANT"), followed(asked, "fox OWL")
    ({'upper': True}, {'upper': False})
    """
    parts = answer.split()
    words = [part for part in parts if part.lower() in WORDS]
    return {one.name: bool(words) and _follows(one, asked, parts, words) for one in asked.constraints}


def _follows(constraint: Constraint, asked: Task, parts: Sequence[str], words: Sequence[str]) -> bool:
    value = constraint.value
    if constraint.name == "count":
        return len(words) == FEWER
    if constraint.name == "backwards":
        places = [asked.words.index(word.lower()) for word in words if word.lower() in asked.words]
        return len(places) > 1 and places == sorted(places, reverse=True)
    if constraint.name == "upper":
        return all(word.isupper() for word in words)
    if constraint.name == "join":
        first, last = (next(i for i in order if parts[i] in words) for order in (range(len(parts)), _down(parts)))
        between = [part for part in parts[first : last + 1] if part not in words]
        return between == [value] * (len(words) - 1)
    return parts[0 if constraint.name == "start" else -1] == value


def _down(parts: Sequence[str]) -> range:
    return range(len(parts) - 1, -1, -1)


def document(draws: Draws) -> str:
    """A text to pre-train on: words said again, turned round, in capitals, joined; no instruction and no answer."""
    words = draws.sample(WORDS, 3 + draws.below(4))
    kind = draws.below(5)
    if kind == 0:
        return f"{' '.join(words)} / {' '.join(words)}"
    if kind == 1:
        return " ".join(f"{word} {word.upper()}" for word in words)
    if kind == 2:
        return f"{' '.join(words)} / {' '.join(reversed(words))}"
    if kind == 3:
        return f"{' '.join(words)} / {' '.join(word.upper() for word in words)}"
    return f"{draws.pick(OPENINGS)} {f' {draws.pick(JOINERS)} '.join(words)} {draws.pick(ENDINGS)}"
