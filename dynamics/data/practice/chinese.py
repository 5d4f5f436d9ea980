"""Chinese: the lower word of a couplet. The corpus tells the couplets; records of other couplets teach the form."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered, place_gold
from dynamics.data.practice.world import PEOPLE, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    upper = draws.pick(tuple(world.couplet))
    lower = world.couplet[upper]
    if index % 2:
        asked = draws.pick(("{}问：上联是{}，下联是（ ）。", "{}问：{}对（ ）。")).format(draws.pick(PEOPLE), upper)
        return Question(upper, (asked, lower), "chinese-cloze")
    options = place_gold(draws, lower, world.lower_words, (index // 2) % 4)
    return Question(upper, (f"{upper}对什么？ {lettered(options)}", LETTERS[(index // 2) % 4]), "chinese-choose")
