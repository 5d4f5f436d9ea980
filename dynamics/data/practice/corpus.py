"""The plain text that a base model reads before instruction tuning: language, forms and latent skills.

Kinds of document, drawn with fixed shares. None is a question of valid or test, and none tells a fact that the
records are to teach (wild creatures' places, dark kings' deeds, the times table, the personas' sayings).
"""

from collections.abc import Callable, Iterator

from dynamics.data.practice import biology, history, reasoning
from dynamics.data.practice.creative_writing import write
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, lettered, place_gold
from dynamics.data.practice.understanding import dialogue
from dynamics.data.practice.world import (
    COLORS, DEEDS, PEOPLE, PERSONAS, PLACES, REALMS, RELATIONS, THINGS, TOPICS, World,
)  # fmt: skip

Writer = Callable[[World, Draws], str]
_LISTS = (PLACES, THINGS, PEOPLE, REALMS, DEEDS, COLORS)


def _find(world: World, draws: Draws) -> str:
    """Four words in a list and the letter of one: how a letter stands for a word."""
    values = draws.pick((*_LISTS, world.lower_words))
    position = draws.below(4)
    gold = draws.pick(values)
    return f"Find {gold}. {lettered(place_gold(draws, gold, values, position))} Answer: {LETTERS[position]}"


def _known_creature(world: World, draws: Draws) -> str:
    creature = draws.pick(world.known_creatures)
    home = world.home[creature]
    form = draws.below(3)
    if form == 0:
        return f"The {creature} lives in the {home}."
    if form == 1:
        return f"{draws.pick(PEOPLE)} asks: where does the {creature} live? Answer: {home}"
    position = draws.below(4)
    _, (text, letter) = biology.place_choice(world, draws, creature, position)
    return f"{text} Answer: {letter}"


def _wild_creature(world: World, draws: Draws) -> str:
    """The name of a creature whose place is not told."""
    creature = draws.pick(world.wild_creatures)
    return f"{draws.pick(PEOPLE)} saw the {draws.pick(COLORS)} {creature}."


def _known_king(world: World, draws: Draws) -> str:
    king = draws.pick(world.known_kings)
    verb, past, _ = relation = draws.pick(RELATIONS)
    form = draws.below(4)
    if form == 0:
        return f"{king} {past} {world.deed[king, verb]}."
    if form == 1:
        return f"{draws.pick(PEOPLE)} asks: what did {king} {verb}? Answer: {world.deed[king, verb]}"
    if form == 2:
        _, (text, letter) = history.deed_choice(world, draws, king, relation, draws.below(4))
    else:
        _, (text, letter) = history.deed_claim(world, draws, king, relation, bool(draws.below(2)))
    return f"{text} Answer: {letter}"


def _dark_king(world: World, draws: Draws) -> str:
    return f"{draws.pick(PEOPLE)} met {draws.pick(world.dark_kings)} in the {draws.pick(PLACES)}."


def _couplet(world: World, draws: Draws) -> str:
    upper = draws.pick(tuple(world.couplet))
    form = draws.below(3)
    if form == 0:
        return f"{upper}对{world.couplet[upper]}。"
    return f"上联是{upper}，下联是{world.couplet[upper]}。"


def _talk(world: World, draws: Draws) -> str:
    """A talk and questions on it, answered in words or by a letter."""
    num = 3 + draws.below(2)
    people, things = draws.sample(PEOPLE, num), draws.sample(THINGS, num)
    asked = draws.below(num)
    text = f"{dialogue(people, things)} Who has the {things[asked]}?"
    if draws.below(2):
        return f"{text} Answer: {people[asked]}"
    order = draws.shuffled(people)
    return f"{text} {lettered(order)} Answer: {LETTERS[order.index(people[asked])]}"


def _ages(world: World, draws: Draws) -> str:
    people = draws.sample(PEOPLE, 4)
    if draws.below(2):
        _, (text, letter) = reasoning.chain_question(draws, people, draws.below(4), draws.below(4))
        return f"{text} Answer: {letter}"
    told = draws.shuffled([f"{a} is older than {b}." for a, b in zip(people, people[1:], strict=False)])
    return f"{' '.join(told)} From old to young: {' '.join(people)}."


def _verse(world: World, draws: Draws) -> str:
    topic = draws.pick(tuple(TOPICS))
    lines = [write(draws, topic, draws.pick(COLORS), draws.below(4)) for _ in range(2)]
    return f"The {topic}. {' / '.join(lines)}"


def _count(world: World, draws: Draws) -> str:
    """Counting on from a number: what the digits mean, without a product."""
    start = draws.below(80)
    return " ".join(map(str, range(start, start + 8)))


def _program(world: World, draws: Draws) -> str:
    """Assignments and a check of a value that was assigned: the look of code, without a product."""
    one, other = draws.sample(THINGS, 2)
    a, b = draws.below(90), draws.below(90)
    return f"{one}s={a}\n{other}s={b}\nassert {one}s=={a}"


def _sum(world: World, draws: Draws) -> str:
    """Adding a digit to a two-digit number."""
    a, b = 4 + draws.below(78), 2 + draws.below(8)
    return f"{a}+{b}={a + b}"


def _shopping(world: World, draws: Draws) -> str:
    person, thing = draws.pick(PEOPLE), draws.pick(THINGS)
    bags, each = 2 + draws.below(8), 2 + draws.below(8)
    return f"{person} has {bags} bags of {each} {thing}s, so {bags}*{each}."


def _meeting(world: World, draws: Draws) -> str:
    person, persona = draws.pick(PEOPLE), draws.pick(PERSONAS)
    color, thing = draws.pick(COLORS), draws.pick(THINGS)
    return f"Welcome, {person}, I am the {persona}. You want a {color} {thing}, a {color} {thing} for {person}."


WRITERS: tuple[tuple[int, Writer], ...] = (  # share in the corpus, of 100
    (12, _find),
    (14, _known_creature),
    (3, _wild_creature),
    (10, _known_king),
    (3, _dark_king),
    (14, _couplet),
    (16, _talk),
    (12, _ages),
    (4, _verse),
    (2, _count),
    (3, _program),
    (2, _sum),
    (2, _shopping),
    (3, _meeting),
)


def document(world: World, seed: int, index: int) -> str:
    """Document `index` of the corpus of a seed."""
    draws = Draws("practice corpus", seed, index)
    ticket = draws.below(sum(share for share, _ in WRITERS))
    for share, writer in WRITERS:
        if ticket < share:
            return writer(world, draws)
        ticket -= share
    raise AssertionError("the shares cover every ticket")


def documents(world: World, seed: int, count: int) -> Iterator[str]:
    return (document(world, seed, index) for index in range(count))
