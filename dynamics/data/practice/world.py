"""The invented world behind the practice set: a fixed lexicon, and facts that depend on the seed.

The lexicon is small on purpose: about 250 words, so that a vocabulary of 1,024 pieces holds them whole, and names
of two syllables, so that a fact belongs to a combination of pieces and not to a piece. The facts are tables
from a name to a value; how many there are sets how many records it takes to meet them all (see design.py).
"""

import functools
from dataclasses import dataclass

from dynamics.data.practice.draws import Draws

PEOPLE = ("Ann", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kim", "Leo")
THINGS = ("cup", "hat", "map", "key", "book", "lamp", "coin", "rope", "drum", "bell", "ring", "bag")
COLORS = ("red", "blue", "green", "white", "black", "gray")
PLACES = ("marsh", "river", "cave", "hill", "forest", "lake", "desert", "field")

# Creatures: first and second syllable; 12 x 16 names.
_FIRST = ("vel", "tor", "mun", "sib", "gal", "pex", "dro", "lum", "kip", "nar", "fen", "ruz")
_SECOND = ("ka", "mo", "ti", "bu", "lo", "ra", "ne", "shi", "do", "pa", "wi", "zu", "fa", "go", "ly", "ce")
NUM_KNOWN_CREATURES = 48  # whose places the base corpus tells; the other 144 are met in records only

KING_NAMES = ("Orin", "Bram", "Doric", "Edra", "Halvo", "Ilva", "Rusk", "Tamar", "Ulric", "Wenna", "Yorl", "Zeva")
EPITHETS = ("Old", "Bold", "Wise", "Cruel", "Lame", "Young", "Pious", "Tall")
REALMS = ("Arden", "Belmor", "Corin", "Delva", "Estra", "Falken", "Gotha", "Hesper")
DEEDS = ("bridge", "temple", "wall", "tower", "harbor", "garden", "road", "mill")
RELATIONS = (("rule", "ruled", REALMS), ("build", "built a", DEEDS))
NUM_KNOWN_KINGS = 16

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

# Two-character words for the couplets of the Chinese ability.
HAN_FIRST = "青白红黄黑金玉石水火风云春秋冬夏"
HAN_SECOND = "山花草木马鸟鱼龙江河湖海月日星雨"
NUM_COUPLETS = 192
NUM_LOWER_WORDS = 32


@dataclass(frozen=True)
class World:
    """The facts of one seed."""

    seed: int
    home: dict[str, str]  # creature -> place
    known_creatures: tuple[str, ...]
    wild_creatures: tuple[str, ...]
    deed: dict[tuple[str, str], str]  # (king, relation verb) -> realm or building
    known_kings: tuple[str, ...]
    dark_kings: tuple[str, ...]
    saying: dict[str, str]  # persona -> phrase
    couplet: dict[str, str]  # upper word -> lower word
    lower_words: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def world(seed: int) -> World:
    """The world of a seed; equal for equal seeds on every machine."""
    draws = Draws("practice world", seed)
    creatures = draws.shuffled([a + b for a in _FIRST for b in _SECOND])
    home = dict(zip(creatures, draws.shuffled(_balanced(PLACES, len(creatures))), strict=True))
    kings = draws.shuffled([f"{name} the {epithet}" for name in KING_NAMES for epithet in EPITHETS])
    deed = {}
    for verb, _, values in RELATIONS:
        for king, value in zip(kings, draws.shuffled(_balanced(values, len(kings))), strict=True):
            deed[king, verb] = value
    words = draws.sample([a + b for a in HAN_FIRST for b in HAN_SECOND], NUM_COUPLETS + NUM_LOWER_WORDS)
    upper, lower = words[:NUM_COUPLETS], draws.shuffled(_balanced(tuple(words[NUM_COUPLETS:]), NUM_COUPLETS))
    return World(
        seed=seed,
        home=home,
        known_creatures=tuple(creatures[:NUM_KNOWN_CREATURES]),
        wild_creatures=tuple(creatures[NUM_KNOWN_CREATURES:]),
        deed=deed,
        known_kings=tuple(kings[:NUM_KNOWN_KINGS]),
        dark_kings=tuple(kings[NUM_KNOWN_KINGS:]),
        saying=dict(zip(PERSONAS, draws.shuffled(SAYINGS), strict=True)),
        couplet=dict(zip(upper, lower, strict=True)),
        lower_words=tuple(dict.fromkeys(lower)),
    )


def _balanced(values: tuple[str, ...], count: int) -> list[str]:
    """Every value equally often (to within one)."""
    return [values[i % len(values)] for i in range(count)]
