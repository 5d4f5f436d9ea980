"""In which order the levels of one query are told: Conifer's own order, and those its ablation compares it with.

    easy_to_hard   as published: level 1 first, the hardest last
    shuffled       the same exchanges in an order drawn from the seed and the conversation
    hard_to_easy   the hardest first
    hard_only      the hardest exchange alone
    single         every exchange a conversation of its own, for orders across conversations

Source: Sun et al. 2024, "Conifer" (arXiv 2404.02823), its ablation of progressive learning.
"""

from typing import Literal, get_args

from dynamics.data.conifer.levels import Conversation
from dynamics.seeds import name_hash

Arrangement = Literal["easy_to_hard", "shuffled", "hard_to_easy", "hard_only", "single"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)


def arrange(conversation: Conversation, arrangement: Arrangement, *, seed: int) -> list[Conversation]:
    """The conversations that a conversation from easy to hard becomes: one, or with "single" one for each exchange.

    Depends on the conversation and, where it is shuffled, on the seed; on no other conversation. A shuffle may leave
    the order as it was, as a random order of few may.
    """
    exchanges = conversation.exchanges
    if arrangement == "single":
        return [
            Conversation(key=conversation.key, exchanges=(exchange,), system=conversation.system)
            for exchange in exchanges
        ]
    if arrangement == "shuffled":
        texts = (conversation.key, *(exchange.question for exchange in exchanges))
        order = sorted(
            range(len(exchanges)), key=lambda place: (name_hash("conifer shuffle", seed, place, *texts), place)
        )
        exchanges = tuple(exchanges[place] for place in order)
    elif arrangement == "hard_to_easy":
        exchanges = exchanges[::-1]
    elif arrangement == "hard_only":
        exchanges = exchanges[-1:]
    return [Conversation(key=conversation.key, exchanges=exchanges, system=conversation.system)]
