"""Process feedback: how a model checks an answer against its constraints, told inside the reply or by another speaker.

    internal   06_answer_internal.json: level items whose answer ends with how its own constraints were met
    external   06_answer_external.json: {question: [question, weak answer, critique, better answer]}, or two messages
               [question, answer] where the weak answer was found to follow everything

Source: Sun et al. 2024, "Conifer" (arXiv 2404.02823), section 3.3, and `get_external` of its code. That code takes the
weak answer for right when "yes" or "does follow" occurs anywhere in the judge's text, also inside another word; here
the conversations are read as they were written, and nothing is judged again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamics.data.conifer.levels import Conversation, Exchange, LevelItem
from dynamics.record import Record, RecordError, parse_record

HARDEST = 5  # the published code asks the weak model level-5 questions only


def internal(items: Iterable[LevelItem]) -> list[Conversation]:
    """Each item a conversation of its own, in their order."""
    return [Conversation(key=item.query, exchanges=(item.exchange(),)) for item in items]


def external(
    conversations: Sequence[tuple[str, Any]], *, keys: Mapping[str, str], where: str
) -> list[tuple[str, Conversation]]:
    """(question, conversation) of one or two exchanges each, in their order, at level 5.

    `keys` gives the query of each question that is a level item; any other question is a query of its own. Raises
    RecordError for a list that is no conversation, or does not begin with its question.
    """
    found = []
    for number, (question, messages) in enumerate(conversations, 1):
        place = f"{where}: item {number}"
        record = parse_record({"messages": messages}, where=place, ability="external")
        exchanges = exchanges_of(record, levels=None)
        if len(exchanges) not in (1, 2):
            raise RecordError(place, "messages", f"are {2 * len(exchanges)}; external feedback has two or four")
        if exchanges[0].question != question:
            raise RecordError(place, "messages[0].content", f"is not the question it stands under, {question[:60]!r}")
        key = keys.get(question, question)
        told = tuple(Exchange(question=one.question, answer=one.answer, level=HARDEST) for one in exchanges)
        found.append((question, Conversation(key=key, exchanges=told)))
    return found


def exchanges_of(record: Record, *, levels: Sequence[int] | None) -> tuple[Exchange, ...]:
    """The question-answer pairs of a record, without a system turn before them; `levels` one for each of them."""
    turns = record.messages[1:] if record.messages[0].role == "system" else record.messages
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    known: Sequence[int | None] = levels if levels is not None else [None] * len(pairs)
    return tuple(
        Exchange(question=user.content, answer=reply.content, level=level)
        for (user, reply), level in zip(pairs, known, strict=True)
    )
