"""Biology: where an invented creature lives. A fact is met in a record or it is not: volume sets the score."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered, place_gold
from dynamics.data.practice.world import PEOPLE, PLACES, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """One record in two asks for the place in words (train only), the other is a question of four choices."""
    creature = draws.pick(world.wild_creatures)
    if train and index % 2:
        return Question(None, place_open(world, draws, creature), "biology")
    options, text = place_choice(world, draws, creature, (index // 2) % 4)
    return Question(f"{creature}:{','.join(sorted(options))}", text, "biology")


def place_open(world: World, draws: Draws, creature: str) -> tuple[str, str]:
    asked = draws.pick(("{} asks: where does the {} live?", "{} wants to find the {}. Where?"))
    return asked.format(draws.pick(PEOPLE), creature), world.home[creature]


def place_choice(world: World, draws: Draws, creature: str, position: int) -> tuple[list[str], tuple[str, str]]:
    options = place_gold(draws, world.home[creature], PLACES, position)
    return options, (f"Where does the {creature} live? {lettered(options)}", LETTERS[position])
