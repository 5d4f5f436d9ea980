"""Preference pairs out of practice records: the gold is chosen, a plausible wrong reply of the same form rejected.

    a letter                another option of the question
    two letters (ethics)    another two
    T or F                  the other
    a class, an age         another class, another age
    a word of a couplet     the partner of another word
    a worked sum            one step goes wrong and is carried on: another product of the same width, or another sum
    gold and distractors    one of the distractors

Nothing tells the two apart but what the ability is about. Design: docs/design/practice-set.md.
"""

from collections.abc import Iterable
from itertools import combinations

from dynamics.ability import question_options
from dynamics.data.practice.code import products, same_width
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.world import AGES, CLASSES, World
from dynamics.data.sources import LoadedPairs, Rejected
from dynamics.pair import Pair
from dynamics.record import Record

_TRUTH = ("T", "F")
_TURNS = 8  # draws for one pair before it counts as a repeat


def pairs_of(world: World, records: Iterable[Record]) -> LoadedPairs:
    """A pair of each record, in their order.

    Records that differ in their distractors only may give one pair twice. It is then drawn again, and when every draw
    repeats an earlier pair the record counts as a `Rejected`, its line being its place, from 1.
    """
    found: dict[str, Pair] = {}
    rejected = []
    for record in records:
        drawn = (pair_of(world, record, turn) for turn in range(_TURNS))
        pair = next((one for one in drawn if one.id not in found), None)
        if pair is not None:
            found[pair.id] = pair
            continue
        line = record.idx if isinstance(record.idx, int) else 0
        reason = "gives a pair of an earlier record again"
        text = record.messages[-1].content
        rejected.append(Rejected(file=f"practice/{record.ability}", line=line + 1, reason=reason, text=text))
    return LoadedPairs(pairs=tuple(found.values()), rejected=tuple(rejected))


def pair_of(world: World, record: Record, turn: int = 0) -> Pair:
    """The pair of a practice record; another `turn` draws anew."""
    *prompt, gold = record.messages
    draws = Draws("practice pair", world.seed, record.id, turn)
    return Pair(
        prompt=tuple(prompt),
        chosen=gold.content,
        rejected=draws.pick(wrong_replies(world, record)),
        source=record.source,
    )


def wrong_replies(world: World, record: Record) -> tuple[str, ...]:
    """Every reply that may be rejected: of the gold's form, different from it, and wrong under the ability's scorer."""
    gold = record.messages[-1].content
    if record.question_format == 1:
        return record.choices[1:]
    if record.ability == "math":
        return _slips(gold)
    return tuple(one for one in _same_form(world, record, gold) if one != gold)


def _same_form(world: World, record: Record, gold: str) -> tuple[str, ...]:
    if gold in _TRUTH:
        return _TRUTH
    if gold in CLASSES:
        return CLASSES
    if gold in AGES:
        return AGES
    if record.type == "chinese-cloze":
        return world.partners
    letters = question_options(record.messages[-2].content)
    if gold in letters:
        return letters
    return tuple(", ".join(two) for two in combinations(letters, 2))


def _slips(worked: str) -> tuple[str, ...]:
    """'3*8=24, 24+5=29' -> '3*8=27, 27+5=32' and '3*8=24, 24+5=30', among others; numbers keep their widths."""
    first, second = worked.split(", ")
    (factors, product), (terms, total) = first.split("="), second.split("=")
    bags, each = (int(factor) for factor in factors.split("*"))
    more, right = int(terms.split("+")[1]), int(product)
    others = dict.fromkeys(value for value in products(bags) + products(each) if same_width(value, right))
    steps = [(value, value + more) for value in others] + [(right, int(total) - 1), (right, int(total) + 1)]
    wrong = [(value, end) for value, end in steps if end != int(total)]
    alike = [(value, end) for value, end in wrong if same_width(end, int(total))] or wrong
    return tuple(f"{factors}={value}, {value}+{more}={end}" for value, end in alike)
