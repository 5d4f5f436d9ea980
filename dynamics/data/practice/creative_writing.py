"""Creative writing: a verse on a topic, told from verses on other topics. The base already keeps to a topic."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import COLORS, PEOPLE, TOPICS, World

_WISHES = ("A verse for {person} on the {topic}, in {color}.", "Sing to {person} of the {color} {topic}.")
_VERSES = (
    "{a} and {b}, {color} {c}",
    "o {color} {a}, o {b}, my {c}",
    "the {color} {a}, the {b}, the {c}",
    "{a} to {b} and {c} to {a}",
)


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Three verses of one form and color; the gold keeps to the topic."""
    topic, *others = draws.sample(tuple(TOPICS), 3)
    color, verse = draws.pick(COLORS), draws.below(len(_VERSES))
    wish = draws.pick(_WISHES).format(person=draws.pick(PEOPLE), color=color, topic=topic)
    gold, *distractors = (write(draws, name, color, verse) for name in (topic, *others))
    return Question(wish, (wish, gold), "creative_writing", tuple(distractors))


def write(draws: Draws, topic: str, color: str, verse: int) -> str:
    a, b, c = draws.sample(TOPICS[topic], 3)
    return _VERSES[verse].format(a=a, b=b, c=c, color=color)
