"""Creative writing: a verse on a topic, told from verses on other topics. The base already keeps to a topic."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import COLORS, TOPICS, World

_VERSES = ("{a} and {b}, {color} {c}", "o {a}, o {b}, my {c}", "the {color} {a}, the {b}, the {c}", "{a} to {b} and {c} to {a}")


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    topic, *others = draws.sample(tuple(TOPICS), 3)
    wish = draws.pick(("Write a verse about the", "A short poem, please, on the", "Sing of the"))
    color, verse = draws.pick(COLORS), draws.below(len(_VERSES))
    gold, *distractors = (write(draws, name, color, verse) for name in (topic, *others))
    return Question(f"{wish}:{gold}", (f"{wish} {topic}.", gold), "creative_writing", tuple(distractors))


def write(draws: Draws, topic: str, color: str, verse: int) -> str:
    a, b, c = draws.sample(TOPICS[topic], 3)
    return _VERSES[verse].format(a=a, b=b, c=c, color=color)
