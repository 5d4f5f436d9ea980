"""The invented world behind the practice set: a fixed lexicon, and facts that depend on the seed.

The lexicon is small on purpose: about 250 words, so that a vocabulary of 1,024 pieces holds them whole, and names
of two syllables, so that a fact belongs to a combination of pieces and not to a piece. The facts are tables
from a name to a value; how many there are sets how many records it takes to meet them all (see design.py).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from dynamics.data.practice.draws import Draws

PEOPLE = ("Ann", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kim", "Leo")
THINGS = ("cup", "hat", "map", "key", "book", "lamp", "coin", "rope", "drum", "bell", "ring", "bag")
COLORS = ("red", "blue", "green", "white", "black", "gray")

# Creatures: first and second syllable; 12 x 8 names. Their classes stand in the order of the field guide.
_FIRST = ("vel", "tor", "mun", "sib", "gal", "pex", "dro", "lum", "kip", "nar", "fen", "ruz")
_SECOND = ("ka", "mo", "ti", "bu", "lo", "ra", "ne", "shi")
CLASSES = ("beast", "bird", "fish", "insect")
NUM_KNOWN_CREATURES = 24  # whose classes the base corpus tells; the other 72 are met in records only

# Kings: 10 x 8 names. Their ages stand in the order of time.
KING_NAMES = ("Orin", "Bram", "Doric", "Edra", "Halvo", "Ilva", "Rusk", "Tamar", "Ulric", "Wenna")
EPITHETS = ("Old", "Bold", "Wise", "Cruel", "Lame", "Young", "Pious", "Tall")
AGES = ("stone", "bronze", "iron", "gold")
NUM_KNOWN_KINGS = 16  # the other 64 are met in records only

PERSONAS = (
    "pirate", "monk", "baker", "knight", "witch", "farmer", "sailor", "poet",
    "judge", "thief", "hunter", "tailor", "miner", "nurse", "clown", "guard",
    "king", "beggar", "smith", "singer", "potter", "scout", "weaver", "cook",
)  # fmt: skip
SAYINGS = (
    "by the tide", "bless the day", "warm as bread", "on my honor", "hiss and smoke", "rain or sun",
    "wind and wave", "sing, my heart", "law is law", "hush, no noise", "quiet as snow", "stitch by stitch",
    "deep and dark", "rest and heal", "ha, what fun", "halt, who goes", "kneel to me", "spare a penny",
    "hot as iron", "la la la", "soft as clay", "eyes on the path", "thread by thread", "salt and pepper",
)  # fmt: skip

TOPICS = {
    "sea": ("wave", "salt", "ship", "tide"),
    "night": ("moon", "star", "dark", "dream"),
    "winter": ("snow", "ice", "cold", "frost"),
    "spring": ("bud", "bloom", "bee", "rain"),
    "fire": ("flame", "smoke", "ash", "spark"),
    "feast": ("bread", "wine", "song", "dance"),
    "war": ("sword", "shield", "blood", "horn"),
    "road": ("dust", "stone", "wheel", "step"),
}

FEELINGS = {
    "glad": ("hurrah", "bravo", "joy", "cheers"),
    "sad": ("alas", "woe", "tears", "pity"),
    "angry": ("fie", "shame", "curses", "rage"),
}

# Two-character words of the Chinese ability; each belongs to a season and has a partner in couplets.
HAN_FIRST = "青白红黄黑金玉石水火风云天大小长"
HAN_SECOND = "山花草木马鸟鱼龙江河湖海月日星雨"
SEASONS = "春夏秋冬"
NUM_HAN_WORDS = 64
NUM_PARTNERS = 16


@dataclass(frozen=True)
class World:
    """The facts of one seed."""

    seed: int
    kind: dict[str, str]  # creature -> class
    known_creatures: tuple[str, ...]
    wild_creatures: tuple[str, ...]
    age: dict[str, str]  # king -> age
    known_kings: tuple[str, ...]
    dark_kings: tuple[str, ...]
    saying: dict[str, str]  # persona -> phrase
    season: dict[str, str]  # word -> season
    partner: dict[str, str]  # word -> the word that answers it in a couplet
    partners: tuple[str, ...]
    wild_of: dict[str, tuple[str, ...]]  # class -> its wild creatures
    dark_of: dict[str, tuple[str, ...]]  # age -> its dark kings
    words_of: dict[str, tuple[str, ...]]  # season -> its words


@functools.lru_cache(maxsize=4)
def world(seed: int) -> World:
    """The world of a seed; equal for equal seeds on every machine."""
    draws = Draws("practice world", seed)
    creatures = draws.shuffled([a + b for a in _FIRST for b in _SECOND])
    kings = draws.shuffled([f"{name} the {epithet}" for name in KING_NAMES for epithet in EPITHETS])
    words = draws.shuffled([a + b for a in HAN_FIRST for b in HAN_SECOND])
    partners, words = words[:NUM_PARTNERS], words[NUM_PARTNERS:][:NUM_HAN_WORDS]
    known, wild = tuple(creatures[:NUM_KNOWN_CREATURES]), tuple(creatures[NUM_KNOWN_CREATURES:])
    bright, dark = tuple(kings[:NUM_KNOWN_KINGS]), tuple(kings[NUM_KNOWN_KINGS:])
    kind = _table(draws, known, CLASSES) | _table(draws, wild, CLASSES)
    age = _table(draws, bright, AGES) | _table(draws, dark, AGES)
    season = _table(draws, words, SEASONS)
    return World(
        seed=seed,
        kind=kind,
        known_creatures=known,
        wild_creatures=wild,
        age=age,
        known_kings=bright,
        dark_kings=dark,
        saying=_table(draws, PERSONAS, SAYINGS),
        season=season,
        partner=_table(draws, words, partners),
        partners=tuple(partners),
        wild_of=_inverse(wild, kind),
        dark_of=_inverse(dark, age),
        words_of=_inverse(words, season),
    )


def _table(draws: Draws, names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """A value for each name, every value equally often (to within one)."""
    return dict(zip(names, draws.shuffled([values[i % len(values)] for i in range(len(names))]), strict=True))


def _inverse(names: Sequence[str], table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The names of each value."""
    return {value: tuple(name for name in names if table[name] == value) for value in sorted(set(table.values()))}
