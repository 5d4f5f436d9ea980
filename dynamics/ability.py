"""The ten abilities, and how a record of each becomes an item: what is asked, how it is scored, what chance gives.

    question_format 1                       perplexity   gold against distractors       chance 1 / number of choices
    ethics, gold of option letters          multi        letters on the last line       1 / C(options, letters in gold)
    letters in `answer` after reasoning     multi        the same
    math; a number in the field `answer`    numeric      the final answer               0
    gold is one option letter               choice       one letter                     1 / options
    gold is 正确, 错, √, T, false, ...       true_false   keywords of one side           1/2
    chinese, gold is one run of characters  cloze        the first run of characters    0
    anything else                           exact        equal up to white space        0

The kind is decided per record, not per ability: real files mix them (history holds choices and true/false).
Source: Song et al. 2023, "Dynamics of Instruction Tuning", and its evaluation code. `exact` is ours: that code refuses
every other gold.
"""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, Record, Turn, ability_name
from dynamics.scorers import (
    FALSE_WORDS,
    TRUE_WORDS,
    Scorer,
    cloze,
    exact,
    is_number,
    multi,
    numeric,
    read_final,
    read_letters,
    true_false,
)

Kind = Literal["choice", "true_false", "cloze", "numeric", "multi", "perplexity", "exact"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LETTERS = "ABCDEFGHIJ"

# How the text that the model generated is scored; choices and perplexities are scored from likelihoods.
SCORERS: dict[Kind, Scorer] = {
    "true_false": true_false,
    "cloze": cloze,
    "numeric": numeric,
    "multi": multi,
    "exact": exact,
}


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One ability of the roster; `name` is also the stem of its files."""

    name: str
    title: str
    description: str
    kinds: tuple[Kind, ...]  # what its items usually are


_ROSTER = (
    Ability(
        name="biology",
        title="STEM: biology",
        description="Facts of biology and what follows from them, as exam questions with four options.",
        kinds=("choice",),
    ),
    Ability(
        name="history",
        title="Humanity: history",
        description="Facts of history: questions with four options, and statements to be called true or false.",
        kinds=("choice", "true_false"),
    ),
    Ability(
        name="code",
        title="Code generation",
        description="Programs for a stated task; the right one must be likelier than two wrong ones.",
        kinds=("perplexity",),
    ),
    Ability(
        name="creative_writing",
        title="Creative writing",
        description="Texts for a writing task; the fitting one must be likelier than two that do not fit.",
        kinds=("perplexity",),
    ),
    Ability(
        name="chinese",
        title="Chinese language",
        description="Chinese words, poems and grammar: questions with four options, and blanks to be filled.",
        kinds=("choice", "cloze"),
    ),
    Ability(
        name="understanding",
        title="Dialogue understanding",
        description="Questions about a dialogue given in several turns, with three or four options.",
        kinds=("choice",),
    ),
    Ability(
        name="role_play",
        title="Role-play chat",
        description="Staying in a role over several turns; the fitting reply must be likelier than two others.",
        kinds=("perplexity",),
    ),
    Ability(
        name="reasoning",
        title="Logical reasoning",
        description="Conclusions from stated premises, with four options.",
        kinds=("choice",),
    ),
    Ability(
        name="math",
        title="Math, chain of thought",
        description="Problems solved in steps; the final answer must have the right value.",
        kinds=("numeric",),
    ),
    Ability(
        name="ethics",
        title="Ethics",
        description="What is right to do: questions with one or several right options, or replies to tell apart.",
        kinds=("multi", "perplexity"),
    ),
)
ABILITIES: dict[str, Ability] = {ability.name: ability for ability in _ROSTER}
assert tuple(ABILITIES) == ABILITY_NAMES


def normalise_ability(name: str) -> str:
    """The roster's name for any accepted spelling (role-play, Role Play, roleplay, creative).

    Raises UserError with the nearest name for one that is not in the roster.
    """
    known = ability_name(name)
    if known in ABILITIES:
        return known
    near = difflib.get_close_matches(known.lower(), ABILITY_NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UserError(f"{name!r} is not an ability here{hint} known: {', '.join(ABILITY_NAMES)}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A record as a question: `prompt` is everything before the last assistant turn.

    `options` are letters for choice and multi, the texts (gold first) for perplexity, empty for the rest.
    `chance` is the expected score of guessing.
    """

    record: Record
    kind: Kind
    prompt: tuple[Turn, ...]
    reference: str
    options: tuple[str, ...]
    chance: float


def item_of(record: Record) -> Item:
    """The item of a record; see the table at the top of this file."""
    kind, reference, options, chance = _decide(record)
    return Item(
        record=record,
        kind=kind,
        prompt=record.messages[:-1],
        reference=reference,
        options=options,
        chance=chance,
    )


def _decide(record: Record) -> tuple[Kind, str, tuple[str, ...], float]:
    """(kind, reference, options, chance)."""
    if record.question_format == 1:
        return "perplexity", record.choices[0], record.choices, 1 / len(record.choices)
    ability = ability_name(record.ability)
    reply = record.messages[-1].content.strip()
    gold = reply if record.answer is None else record.answer.strip()
    if ability == "math" and record.answer is not None:
        return "numeric", gold, (), 0.0
    # Letters at the end of a reasoned reply are read like a set of letters: from its last line.
    is_letters = re.fullmatch(r"[\sA-F(),，、（）]+", gold) is not None and (ability == "ethics" or gold != reply)
    if is_letters and (letters := read_letters(gold)):
        options = _options(record, max(letters))
        return "multi", gold, options, 1 / math.comb(len(options), len(letters))
    if len(gold) == 1 and (gold in "ABCD" or _is_option(record, gold)):
        options = _options(record, gold)
        return "choice", gold, options, 1 / len(options)
    if gold.lower() in {word.lower() for word in TRUE_WORDS + FALSE_WORDS}:
        return "true_false", gold, (), 0.5
    if ability == "math" or (record.answer is not None and is_number(gold)):
        return "numeric", (read_final(gold) or gold) if record.answer is None else gold, (), 0.0
    if ability == "chinese" and re.fullmatch(r"[\u4e00-\u9fff]+", gold):
        return "cloze", gold, (), 0.0
    return "exact", gold, (), 0.0


def _is_option(record: Record, gold: str) -> bool:
    return gold in question_options(record.messages[-2].content)


def _options(record: Record, last: str) -> tuple[str, ...]:
    """The letters marked in the question, or A-D as the published scorer assumes; always as far as the gold."""
    found = question_options(record.messages[-2].content) or tuple("ABCD")
    return found if last in found else tuple(LETTERS[: LETTERS.index(last) + 1])


# A mark is a letter with a stop after it, or in brackets; inline it stands after white space or the end of a clause.
_STOP = r"(?:\s?[.．、:：)）]|\s?。)"
_LINE_MARK = re.compile(rf"^[ \t]*[（(]?([A-J]){_STOP}", re.MULTILINE)
_MARK = re.compile(rf"(?:^|(?<=[\s:：?？。,，;；]))[（(]?([A-J]){_STOP}|[（(]([A-J])[)）]", re.MULTILINE)


def question_options(question: str) -> tuple[str, ...]:
    """The option letters of a question, from the longest run A, B, C ... of option marks in it.

    Marks at line starts are also looked at by themselves, for options that hold marks: "C. genes (A、a)".

    >>> question_options("Which color is the sky? A. red B. blue C. green")
    ('A', 'B', 'C')
    >>> question_options("Plan A is good")
    ()
    """
    at_lines = [mark.group(1) for mark in _LINE_MARK.finditer(question)]
    anywhere = [mark.group(1) or mark.group(2) for mark in _MARK.finditer(question)]
    return tuple(LETTERS[: max(_longest_run(at_lines), _longest_run(anywhere))])


def _longest_run(letters: list[str]) -> int:
    """The length of the longest run A, B, C, ... in which other marks may lie, but no A; a lone A is no run."""
    best, run = 0, 0
    for letter in letters:
        if letter == "A":
            run = 1
        elif 0 < run < len(LETTERS) and letter == LETTERS[run]:
            run += 1
            best = max(best, run)
    return best
