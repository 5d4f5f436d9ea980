"""Chinese: the season of a word and its partner in a couplet. The corpus tells both; records ask for them."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, SEASONS, World

_CHOICE = ("{person}问{other}：「{word}」属什么？", "「{word}」属什么？{person}问{other}。")
_CLOZE = ("{person}问{other}：「{word}」对（ ）。", "「{word}」对（ ）。{person}问{other}。")


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """A choice among the seasons, or a blank for the partner; splits share the words and not the questions."""
    (person, other), position = draws.sample(PEOPLE, 2), (index // 2) % len(SEASONS)
    if index % 2:
        word = draws.pick(tuple(world.partner))
        asked = draws.pick(_CLOZE).format(person=person, other=other, word=word)
        return Question(asked, (asked, world.partner[word]), "chinese-cloze")
    word = draws.pick(world.words_of[SEASONS[position]])
    asked = f"{draws.pick(_CHOICE).format(person=person, other=other, word=word)} {lettered(SEASONS)}"
    return Question(asked, (asked, LETTERS[position]), "chinese-choose")
