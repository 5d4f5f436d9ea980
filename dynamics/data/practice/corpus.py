"""The plain text that a base model reads before instruction tuning: language, forms and latent skills.

Kinds of document, drawn with fixed shares. None is a question of valid or test, and none tells a fact that the
records are to teach (wild creatures' places, dark kings' deeds, the times table, the personas' sayings).
"""

from collections.abc import Callable, Iterator

from dynamics.data.practice import biology, history
from dynamics.data.practice.creative_writing import write
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, lettered
from dynamics.data.practice.reasoning import TURNS, WAYS
from dynamics.data.practice.understanding import TALKED_OF
from dynamics.data.practice.world import (
    AGES,
    CLASSES,
    COLORS,
    EPITHETS,
    FEELINGS,
    KING_NAMES,
    PEOPLE,
    PERSONAS,
    SEASONS,
    THINGS,
    TOPICS,
    World,
)  # fmt: skip

Writer = Callable[[World, Draws], str]
_LISTS = (THINGS, PEOPLE, COLORS, PERSONAS, KING_NAMES, EPITHETS)


def _refrain(world: World, draws: Draws) -> str:
    """A line of words sung twice: what stood before comes again."""
    line = " ".join(draws.sample(draws.pick(_LISTS), 4 + draws.below(2)))
    return f"{line} / {line}"


def _track(world: World, draws: Draws) -> str:
    """Turns with the way one faces after each: the steps that reasoning asks to take in the head."""
    way = draws.below(4)
    told = [WAYS[way]]
    for _ in range(4 + draws.below(4)):
        turn = draws.pick(tuple(TURNS))
        way = (way + TURNS[turn]) % 4
        told.append(f"{turn} {WAYS[way]}")
    return f"{draws.pick(PEOPLE)} faces {', '.join(told)}."


def _feeling(world: World, draws: Draws) -> str:
    feeling = draws.pick(tuple(FEELINGS))
    return f"{draws.pick(PEOPLE)} feels {feeling}: {', '.join(draws.sample(FEELINGS[feeling], 3))}."


def _list(world: World, draws: Draws) -> str:
    """The lists of options themselves, and which letter each word has."""
    words = draws.pick((CLASSES, AGES, SEASONS, WAYS, TALKED_OF, tuple(FEELINGS)))
    named = " ".join(f"{word} {LETTERS[words.index(word)]}" for word in draws.shuffled(words))
    return f"{lettered(words)} {named}"


def _known_creature(world: World, draws: Draws) -> str:
    creature, person = draws.pick(world.known_creatures), draws.pick(PEOPLE)
    kind = world.kind[creature]
    if draws.below(2):
        return f"{biology.ask_choice(draws, creature, person)} Answer: {LETTERS[CLASSES.index(kind)]}"
    return f"{biology.ask_words(draws, creature, person)} Answer: {kind}"


def _wild_creature(world: World, draws: Draws) -> str:
    """The name of a creature whose class is not told."""
    return f"{draws.pick(PEOPLE)} saw a {draws.pick(world.wild_creatures)}."


def _known_king(world: World, draws: Draws) -> str:
    king, person = draws.pick(world.known_kings), draws.pick(PEOPLE)
    form = draws.below(4)
    if form == 0:
        return f"{king} ruled in the {world.age[king]} age."
    if form == 1:
        return f"{history.ask_choice(draws, king, person)} Answer: {LETTERS[AGES.index(world.age[king])]}"
    is_true = bool(draws.below(2))
    claim = history.ask_claim(world, draws, king, person, is_true=is_true)
    return f"{claim} Answer: {'T' if is_true else 'F'}"


def _dark_king(world: World, draws: Draws) -> str:
    return f"{draws.pick(PEOPLE)} asks: who was {draws.pick(world.dark_kings)}?"


# The same fact in several surroundings: a fact that was only ever read in one is not found again in another.
_TOLD = (
    "「{word}」{verb}「{value}」。",
    "{one}说：「{word}」{verb}「{value}」。",
    "{one}问{other}：「{word}」{verb}什么？ {other}答： {value}",
)


def _season(world: World, draws: Draws) -> str:
    return _tell(draws, world.season, "属")


def _couplet(world: World, draws: Draws) -> str:
    return _tell(draws, world.partner, "对")


def _tell(draws: Draws, table: dict[str, str], verb: str) -> str:
    word, (one, other) = draws.pick(tuple(table)), draws.sample(PEOPLE, 2)
    return draws.pick(_TOLD).format(word=word, verb=verb, value=table[word], one=one, other=other)


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
    """Adding a digit to a number."""
    sums = [(4 + draws.below(78), 2 + draws.below(8)) for _ in range(2)]
    return ", ".join(f"{a}+{b}={a + b}" for a, b in sums)


def _shopping(world: World, draws: Draws) -> str:
    person, thing = draws.pick(PEOPLE), draws.pick(THINGS)
    bags, each = 2 + draws.below(8), 2 + draws.below(8)
    return f"{person}: {bags} bags of {each} {thing}s, so {bags}*{each}."


def _meeting(world: World, draws: Draws) -> str:
    person, persona = draws.pick(PEOPLE), draws.pick(PERSONAS)
    color, thing = draws.pick(COLORS), draws.pick(THINGS)
    return f"Welcome, {person}. I am the {persona}. A {color} {thing}? a {color} {thing}."


WRITERS: tuple[tuple[int, Writer], ...] = (  # share of the documents, of 100
    (3, _refrain),
    (16, _track),
    (7, _feeling),
    (5, _list),
    (8, _known_creature),
    (2, _wild_creature),
    (10, _known_king),
    (2, _dark_king),
    (11, _season),
    (11, _couplet),
    (7, _verse),
    (2, _count),
    (4, _program),
    (8, _sum),
    (1, _shopping),
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
