"""Pair: one question with two replies of which one is preferred, or with one that is judged alone.

The shapes of JSON object that are read, told apart by the fields that they have:

    UltraFeedback   chosen: [{role, content}, ...], rejected: [...], prompt (a text), score_chosen, score_rejected
    messages        prompt: [{role, content}, ...], chosen: [{role, content}] or a text, rejected: the same
    ShareGPT        conversations: [{from, value}, ...], chosen: {from, value}, rejected: {from, value}, system
    HH              chosen: "\\n\\nHuman: ...\\n\\nAssistant: ...", rejected: the same; also with a prompt in that form
    plain           prompt, chosen, rejected: texts; system
    judged          prompt: a text or [{role, content}, ...], completion: the same, label: true or false; system
                    (also a conversation under `messages` or `conversations` whose last turn `label` judges)

In the first, the turns before the last of `chosen` are the prompt, and those of `rejected` must be the same. A pair
is refused when its prompts differ, when its replies are equal, or when the chosen one is scored below the rejected.
Every shape may have `weight`, a number above 0, and `source`. Contents are kept to the letter; of HH's marks one space
after the colon belongs to the mark.

Source: the record schemas of ultrafeedback_binarized, of LLaMA-Factory's preference sets, of Anthropic's hh-rlhf, and
of TRL's data set formats.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from dynamics.errors import UserError
from dynamics.record import Record, RecordError, Turn, parse_record

_SIDES = ("chosen", "rejected")
_HH_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_HH_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_HH_START = "\n\nHuman:"
_WEIGHTS = re.compile(r"(loss_|pair_|sample_|example_)?w(ei|ie)ghts?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`prompt` ends with the user's turn. With one reply only, the other being None, it is a judgement of that reply:
    desirable (chosen) or undesirable (rejected).

    `weight` multiplies the loss. `id` is 16 hex digits of prompt, chosen and rejected, and of nothing else.
    """

    prompt: tuple[Turn, ...]
    chosen: str | None
    rejected: str | None
    weight: float = 1.0
    source: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if self.chosen is None and self.rejected is None:
            raise UserError("a pair has neither a chosen nor a rejected reply; give at least one")
        if not _is_weight(self.weight):
            raise UserError(f"a pair has weight={self.weight}; it must be a finite number above 0")
        if not self.id:
            object.__setattr__(self, "id", pair_id(self.prompt, self.chosen, self.rejected))

    @property
    def is_full(self) -> bool:
        """Whether both replies are there; a judgement has one."""
        return self.chosen is not None and self.rejected is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data in the first shape, of a judgement in the last; `parse_pair` gives back an equal pair."""
        prompt = [{"role": turn.role, "content": turn.content} for turn in self.prompt]
        replies = {side: reply for side in _SIDES if (reply := getattr(self, side)) is not None}
        turns = {side: {"role": "assistant", "content": reply} for side, reply in replies.items()}
        if self.is_full:
            said: dict[str, Any] = {side: [*prompt, turn] for side, turn in turns.items()}
        else:
            ((side, turn),) = turns.items()
            said = {"prompt": prompt, "completion": [turn], "label": side == "chosen"}
        weight = {} if self.weight == 1.0 else {"weight": self.weight}
        return {**said, **weight, "source": self.source, "id": self.id}


def pair_id(prompt: Sequence[Turn], chosen: str | None, rejected: str | None) -> str:
    """16 hex digits that depend on the content alone, the same on every machine."""
    content = ["pair", [[turn.role, turn.content] for turn in prompt], chosen, rejected]
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def parse_pair(data: object, *, where: str, source: str | None = None, both: bool = False) -> Pair:
    """The Pair that a decoded JSON object stands for; `where` names the place in messages ("data/x.jsonl:17").

    `source` fills in a missing source. `both` refuses a reply that is judged alone.

    Raises RecordError with the exact field.
    """
    if not isinstance(data, dict):
        raise RecordError(where, "", "a pair is a JSON object with 'chosen' and 'rejected'")
    weight = _weight(data, where)
    if not any(side in data for side in _SIDES) and ("label" in data or "completion" in data):
        if both:
            raise RecordError(where, "", "judges one reply; here every row has 'chosen' and 'rejected'")
        return _judged(data, where, source, weight)
    for side in _SIDES:
        if side not in data:
            raise RecordError(
                where,
                side,
                "is missing; a pair has 'chosen' and 'rejected', one judged reply has 'completion' and 'label'",
            )
    replies = _shape_of(data)
    chosen, rejected = (replies(data, side, where) for side in _SIDES)
    _same_prompt(chosen, rejected, where)
    if chosen.messages == rejected.messages:
        raise RecordError(where, "rejected", "is the chosen reply again; nothing can be preferred")
    _check_prompt(data, chosen.messages, where)
    _check_scores(data, where)
    return Pair(
        prompt=chosen.messages[:-1],
        chosen=chosen.messages[-1].content,
        rejected=rejected.messages[-1].content,
        weight=weight,
        source=chosen.source or source or "",
    )


def _judged(data: dict[str, Any], where: str, source: str | None, weight: float) -> Pair:
    """One reply and whether it is desirable."""
    label = data.get("label")
    if not isinstance(label, bool):
        problem = "is missing" if "label" not in data else f"is {json.dumps(label)[:60]}"
        raise RecordError(where, "label", f"{problem}; it is true for a desirable reply and false for an undesirable")
    whole = next((name for name in ("messages", "conversations") if name in data), None)
    if "completion" in data:
        reply = _after_prompt(data, "completion", where)
    elif whole is not None:
        reply = _checked({whole: data[whole], "system": data.get("system")}, data, where, {whole: whole})
    else:
        raise RecordError(where, "completion", "is missing; it is the reply that 'label' judges")
    text = reply.messages[-1].content
    return Pair(
        prompt=reply.messages[:-1],
        chosen=text if label else None,
        rejected=None if label else text,
        weight=weight,
        source=reply.source or source or "",
    )


# (row, field of the reply, where it stands) -> prompt and reply as a checked conversation
_Reader = Callable[[dict[str, Any], str, str], Record]


def _shape_of(data: dict[str, Any]) -> _Reader:
    """How the two replies of a row are read."""
    prompt = data.get("prompt")
    if "conversations" in data:
        return _in_conversation
    if all(isinstance(data[side], str) for side in _SIDES):
        if not prompt or (isinstance(prompt, str) and prompt.startswith(_HH_START)):
            return _in_dialogue
        return _after_prompt
    if isinstance(prompt, list) and all(_is_reply(data[side]) for side in _SIDES):
        return _after_prompt
    return _in_messages


def _is_reply(messages: object) -> bool:
    """Whether a list of messages begins with the assistant's turn, so that the prompt stands elsewhere."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and first.get("role") == "assistant"


def _in_messages(data: dict[str, Any], side: str, where: str) -> Record:
    """Prompt and one reply as a checked conversation, out of a list of messages."""
    for one in _SIDES:
        if not isinstance(data[one], (str, list)):
            raise RecordError(where, one, f"is {_plain(data[one])}; it is a text or a list of messages")
    if isinstance(data[side], str):
        raise RecordError(
            where, side, "is a text and the other reply a list of messages; write both as texts or both as lists"
        )
    return _checked({"messages": data[side]}, data, where, {"messages": side})


def _in_conversation(data: dict[str, Any], side: str, where: str) -> Record:
    """The same, out of a conversation and a turn that follows it."""
    conversation = data["conversations"]
    if not isinstance(conversation, list) or not conversation:
        raise RecordError(where, "conversations", "must be a list with at least one turn")
    row = {"conversations": [*conversation, data[side]], "system": data.get("system")}
    return _checked(row, data, where, {f"conversations[{len(conversation)}]": side})


def _plain(value: object) -> str:
    """What is neither a text nor a list, as a message shows it."""
    return "an object" if isinstance(value, dict) else json.dumps(value)


def _after_prompt(data: dict[str, Any], side: str, where: str) -> Record:
    """The same, out of a prompt and a reply, each a text or a list of messages."""
    prompt, reply = data.get("prompt"), data[side]
    if not isinstance(prompt, (str, list)) or not prompt:
        problem = "is missing" if "prompt" not in data else "is empty" if prompt in ("", []) else f"is {_plain(prompt)}"
        raise RecordError(where, "prompt", f"{problem}; it is a text or a list of messages")
    if not isinstance(reply, (str, list)):
        raise RecordError(where, side, "must be a text or a list of messages")
    messages: list[Any] = []
    names: dict[str, str] = {}
    for field, role, value in (("system", "system", data.get("system")), ("prompt", "user", prompt),
                               (side, "assistant", reply)):  # fmt: skip
        if value is None or (field == "system" and value == ""):
            continue
        if isinstance(value, list):
            names |= {f"messages[{len(messages) + index}]": f"{field}[{index}]" for index in range(len(value))}
            messages += value
        else:
            names |= {f"messages[{len(messages)}].content": field, f"messages[{len(messages)}]": field}
            messages.append({"role": role, "content": value})
    return _checked({"messages": messages}, data, where, {**names, "messages": side})


def _in_dialogue(data: dict[str, Any], side: str, where: str) -> Record:
    """The same, out of a text in which "Human:" and "Assistant:" stand at the start of paragraphs."""
    text = (data.get("prompt") or "") + data[side]
    if _HH_MARK.match(text) is None:
        raise RecordError(
            where, side, 'is a text without a prompt; add "prompt", or begin it with "\\n\\nHuman: " as hh-rlhf does'
        )
    _, *parts = _HH_MARK.split(text)
    turns = [{"role": _HH_SPEAKERS[who], "content": said} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return _checked({"messages": turns}, data, where, {"messages": side})


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


def _check_prompt(data: dict[str, Any], messages: Sequence[Turn], where: str) -> None:
    """A text `prompt` beside the messages repeats the first thing that the user says; white space around it is no
    matter. A list repeats all the turns before the reply."""
    prompt = data.get("prompt")
    if isinstance(prompt, str) and prompt.strip() and not prompt.startswith(_HH_START):
        said = next(turn.content for turn in messages if turn.role == "user")
        if prompt.strip() != said.strip():
            raise RecordError(where, "prompt", "is not what the user says first in chosen and rejected")
    if isinstance(prompt, list) and prompt:
        given = [(turn.get("role"), turn.get("content")) if isinstance(turn, dict) else None for turn in prompt]
        before = [(turn.role, turn.content) for turn in messages[:-1]]
        if given != before[len(before) - len(given) :]:
            raise RecordError(where, "prompt", "is not what stands before the reply in chosen and rejected")


def _check_scores(data: dict[str, Any], where: str) -> None:
    chosen, rejected = (data.get(f"score_{side}") for side in _SIDES)
    if _is_number(chosen) and _is_number(rejected) and chosen < rejected:
        raise RecordError(where, "score_chosen", f"is {chosen}, below score_rejected {rejected}; they are swapped")


def _weight(data: dict[str, Any], where: str) -> float:
    """The field `weight`, 1 where it is missing or null; another spelling of it would be lost silently."""
    for name in data:
        if isinstance(name, str) and name != "weight" and _WEIGHTS.fullmatch(name) and "weight" not in data:
            raise RecordError(where, name, "is no field of a pair; did you mean 'weight'? rename it")
    weight = data.get("weight")
    if weight is None:
        return 1.0
    if not _is_weight(weight):
        raise RecordError(where, "weight", f"is {json.dumps(weight)[:60]}; it must be a finite number above 0")
    return float(weight)


def _is_weight(value: object) -> TypeGuard[float]:
    return _is_number(value) and math.isfinite(value) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
