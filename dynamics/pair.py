"""Pair: one question with two replies of which one is preferred, as preference learning reads them.

Two shapes of JSON object are accepted, told apart by the field that only one of them has:

    UltraFeedback   prompt, chosen: [{role, content}, ...], rejected: [...], score_chosen, score_rejected
    ShareGPT        conversations: [{from, value}, ...], chosen: {from, value}, rejected: {from, value}, system

In the first, the turns before the last of `chosen` are the prompt, and those of `rejected` must be the same. A pair
is refused when its prompts differ, when its replies are equal, or when the chosen one is scored below the rejected.
Contents are kept to the letter.

Source: the record schemas of ultrafeedback_binarized and of LLaMA-Factory's preference sets.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from dynamics.record import Record, RecordError, Turn, parse_record

_SIDES = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`prompt` ends with the user's turn. `id` is 16 hex digits of prompt, chosen and rejected, and of nothing else."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", pair_id(self.prompt, self.chosen, self.rejected))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data in the first shape; `parse_pair` gives back an equal pair."""
        prompt = [{"role": turn.role, "content": turn.content} for turn in self.prompt]
        sides = {side: [*prompt, {"role": "assistant", "content": getattr(self, side)}] for side in _SIDES}
        return {**sides, "source": self.source, "id": self.id}


def pair_id(prompt: Sequence[Turn], chosen: str, rejected: str) -> str:
    """16 hex digits that depend on the content alone, the same on every machine."""
    content = ["pair", [[turn.role, turn.content] for turn in prompt], chosen, rejected]
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def parse_pair(data: object, *, where: str, source: str | None = None) -> Pair:
    """The Pair that a decoded JSON object stands for; `where` names the place in messages ("data/x.jsonl:17").

    Raises RecordError with the exact field.
    """
    if not isinstance(data, dict):
        raise RecordError(where, "", "a pair is a JSON object with 'chosen' and 'rejected'")
    for side in _SIDES:
        if side not in data:
            raise RecordError(where, side, "is missing; a pair has 'chosen' and 'rejected'")
    replies = _in_conversation if "conversations" in data else _in_messages
    chosen, rejected = (replies(data, side, where) for side in _SIDES)
    _same_prompt(chosen, rejected, where)
    if chosen.messages == rejected.messages:
        raise RecordError(where, "rejected", "is the chosen reply again; nothing can be preferred")
    _check_prompt_text(data, chosen.messages, where)
    _check_scores(data, where)
    return Pair(
        prompt=chosen.messages[:-1],
        chosen=chosen.messages[-1].content,
        rejected=rejected.messages[-1].content,
        source=chosen.source or source or "",
    )


def _in_messages(data: dict[str, Any], side: str, where: str) -> Record:
    """Prompt and one reply as a checked conversation, out of a list of messages."""
    return _checked({"messages": data[side]}, data, where, {"messages": side})


def _in_conversation(data: dict[str, Any], side: str, where: str) -> Record:
    """The same, out of a conversation and a turn that follows it."""
    conversation = data["conversations"]
    if not isinstance(conversation, list) or not conversation:
        raise RecordError(where, "conversations", "must be a list with at least one turn")
    row = {"conversations": [*conversation, data[side]], "system": data.get("system")}
    return _checked(row, data, where, {f"conversations[{len(conversation)}]": side})


def _checked(row: dict[str, Any], data: dict[str, Any], where: str, names: dict[str, str]) -> Record:
    """`row` by the rules of records; an error names the field that stands in the pair, not the one in `row`."""
    try:
        record = parse_record(row | {"source": data.get("source")}, where=where, ability="pair")
    except RecordError as error:
        for ours, theirs in names.items():
            if error.field.startswith(ours):
                raise RecordError(where, theirs + error.field.removeprefix(ours), error.problem) from None
        raise
    if len(record.messages) == 1:
        raise RecordError(where, next(iter(names.values())), "has one turn; a prompt goes before the reply")
    return record


def _same_prompt(chosen: Record, rejected: Record, where: str) -> None:
    ours, theirs = chosen.messages[:-1], rejected.messages[:-1]
    if len(ours) != len(theirs):
        raise RecordError(
            where, "rejected", f"answers a prompt of {len(theirs)} turns, chosen one of {len(ours)}; they must be equal"
        )
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            raise RecordError(where, f"rejected[{index}]", f"differs from chosen[{index}]; both answer one prompt")


def _check_prompt_text(data: dict[str, Any], messages: Sequence[Turn], where: str) -> None:
    """A `prompt` beside the messages repeats the first thing that the user says; white space around it is no matter."""
    prompt = data.get("prompt")
    said = next(turn.content for turn in messages if turn.role == "user")
    if isinstance(prompt, str) and prompt.strip() and prompt.strip() != said.strip():
        raise RecordError(where, "prompt", "is not what the user says first in chosen and rejected")


def _check_scores(data: dict[str, Any], where: str) -> None:
    chosen, rejected = (data.get(f"score_{side}") for side in _SIDES)
    if _is_number(chosen) and _is_number(rejected) and chosen < rejected:
        raise RecordError(where, "score_chosen", f"is {chosen}, below score_rejected {rejected}; they are swapped")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
