"""History: which realm a king ruled, what he built. More facts than biology, on pairs of a king and a relation."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered, place_gold
from dynamics.data.practice.world import PEOPLE, RELATIONS, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """In training two records in four ask in words; the rest is choice and true or false, one each."""
    king = draws.pick(world.dark_kings)
    verb, _, _ = relation = draws.pick(RELATIONS)
    if train and index % 2:
        asked = draws.pick(("{} asks: what did {} {}?", "Tell {} what {} did {}."))
        return Question(None, (asked.format(draws.pick(PEOPLE), king, verb), world.deed[king, verb]), "history")
    if (index // 2) % 2:
        options, turns = deed_choice(world, draws, king, relation, (index // 4) % 4)
        return Question(f"choice:{king}:{','.join(sorted(options))}", turns, "history-choose")
    claim, turns = deed_claim(world, draws, king, relation, bool((index // 4) % 2))
    return Question(claim, turns, "history-judge")


def deed_choice(world: World, draws: Draws, king: str, relation, position: int) -> tuple[list[str], tuple[str, str]]:
    verb, _, values = relation
    options = place_gold(draws, world.deed[king, verb], values, position)
    return options, (f"What did {king} {verb}? {lettered(options)}", LETTERS[position])


def deed_claim(world: World, draws: Draws, king: str, relation, is_true: bool) -> tuple[str, tuple[str, str]]:
    verb, past, values = relation
    fact = world.deed[king, verb]
    value = fact if is_true else draws.pick([other for other in values if other != fact])
    text = f"{draws.pick(PEOPLE)} says: {king} {past} {value}. True or false?"
    return text, (text, "T" if is_true else "F")
