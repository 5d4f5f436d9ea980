"""Everything about an evaluation that does not depend on the parameters, made once and used at every evaluation.

Records become items, items become token ids, and the texts to be scored are packed into few batches of few shapes. A
worker that trains many models on one source prepares its items once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from dynamics.ability import Item, item_of
from dynamics.data.packing import plan
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval import published
from dynamics.eval.settings import Evaluation
from dynamics.record import Record, Turn

CAP_STEPS = 8  # sizes of the trained part of a group that programs are compiled for


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Texts of similar length packed into batches of one shape.

    `batches` are micro-batches [1, rows or groups, ...] as the training step knows them. The log-probabilities of all
    their entries, flattened one batch after another, belong to the texts that `text_of_entry` names (-1: padding).
    """

    texts: Int32[np.ndarray, " texts"]  # which of the prepared texts
    batches: tuple[dict[str, np.ndarray], ...]
    text_of_entry: Int32[np.ndarray, " entries"]
    first_entry: Int32[np.ndarray, " texts"]  # where each text's answer begins


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Items ready to be put to any model with this vocabulary; made by `prepare`."""

    settings: Evaluation
    tokenizer: Tokenizer
    items: tuple[Item, ...]
    too_long: frozenset[int]  # items that are not asked
    cut: frozenset[int]  # items a text of which was cut to fit
    item_of_text: Int32[np.ndarray, " texts"]  # texts lie item by item, the reference first
    num_targets: Int32[np.ndarray, " texts"]  # trained tokens of each text, its end of turn included
    packed: tuple[Packed, ...]
    letters: tuple[str, ...]
    letter_ids: Int32[np.ndarray, " letters"]
    prompts: tuple[tuple[int, list[int]], ...]  # (item, ids of the prompt up to where the answer begins)
    stop_ids: frozenset[int]


def prepare(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    template: Template,
    settings: Evaluation,
    *,
    row_shards: int = 1,
) -> Prepared:
    """The evaluation of these records; `row_shards` is the number of parts a mesh splits the rows of a batch into."""
    items = tuple(item_of(record) for record in records)
    prompts, too_long = _prompts(items, tokenizer, template, settings)
    texts: list[Encoded] = []
    item_of_text: list[int] = []
    cut: set[int] = set()
    for index, item in enumerate(items):
        encoded = [_answer_only(encode(template, tokenizer, messages)) for messages in _texts(item)]
        if settings.over_long == "truncate" and max(map(len, encoded)) > settings.max_length:
            encoded = [_cut(text, settings.max_length) for text in encoded]
            cut.add(index)
        fits = max(map(len, encoded)) <= settings.max_length and min(text.num_trained for text in encoded) > 0
        if index in too_long or not fits:
            too_long.add(index)
            continue
        texts.extend(encoded)
        item_of_text.extend([index] * len(encoded))
    letters = tuple(sorted({letter for item in items for letter in offered_letters(item, settings)}))
    return Prepared(
        settings=settings,
        tokenizer=tokenizer,
        items=items,
        too_long=frozenset(too_long),
        cut=frozenset(cut - too_long),
        item_of_text=np.asarray(item_of_text, np.int32),
        num_targets=np.asarray([text.num_trained for text in texts], np.int32),
        packed=_buckets(texts, settings, row_shards),
        letters=letters,
        letter_ids=answer_letter_ids(letters, tokenizer, template),
        prompts=tuple((index, prompt) for index, prompt in prompts if index not in too_long),
        stop_ids=_stop_ids(tokenizer, template),
    )


def offered_letters(item: Item, settings: Evaluation) -> tuple[str, ...]:
    """The letters whose logits are compared for this item; none where it is no choice.

    Published: always A to D. A gold beyond D, which the published code refuses, keeps its options.
    """
    if item.kind != "choice":
        return ()
    if settings.rules == "published" and item.reference in published.LETTERS:
        return published.LETTERS
    return item.options


def _cut(text: Encoded, length: int) -> Encoded:
    return Encoded(tokens=text.tokens[:length], trained=text.trained[:length])


def _texts(item: Item) -> list[tuple[Turn, ...]]:
    """The conversations whose last turn is scored: the reference, or every choice with the gold first."""
    if item.kind != "perplexity":
        return [item.record.messages]
    return [(*item.prompt, Turn(role="assistant", content=choice)) for choice in item.options]


def _answer_only(text: Encoded) -> Encoded:
    """The same text with nothing but the last assistant turn trained on."""
    places = np.flatnonzero(text.trained)
    breaks = np.flatnonzero(np.diff(places) > 1)
    last = places[breaks[-1] + 1 :] if len(breaks) else places
    trained = np.zeros_like(text.trained)
    trained[last] = True
    return Encoded(tokens=text.tokens, trained=trained)


def _prompts(
    items: Sequence[Item], tokenizer: Tokenizer, template: Template, settings: Evaluation
) -> tuple[list[tuple[int, list[int]]], set[int]]:
    """The prompts of the items that are answered by generation, and the items whose prompt leaves no room for it."""
    asked = {"true_false", "cloze", "numeric", "multi", "exact"}
    if settings.choice == "generation":
        asked.add("choice")
    prompts, too_long = [], set()
    for index, item in enumerate(items):
        if item.kind not in asked:
            continue
        ids = encode(template, tokenizer, item.prompt, generate=True).tokens.tolist()
        room = settings.max_new_tokens if settings.over_long == "zero" else 1
        if len(ids) + room > settings.max_length:
            too_long.add(index)
        prompts.append((index, ids))
    return prompts, too_long


def answer_letter_ids(
    letters: Sequence[str], tokenizer: Tokenizer, template: Template
) -> Int32[np.ndarray, " letters"]:
    """The id that an answer of this letter begins with under the template: '▁A' under DoIT's.

    Raises UserError when two letters begin with the same id, so that likelihoods could not tell them apart.
    """
    question = Turn(role="user", content="?")
    ids: dict[int, str] = {}
    for letter in letters:
        text = _answer_only(encode(template, tokenizer, (question, Turn(role="assistant", content=letter))))
        first = int(text.tokens[np.flatnonzero(text.trained)[0]])
        if first in ids:
            raise UserError(
                f"answers {ids[first]!r} and {letter!r} begin with the same token {tokenizer.piece(first)!r}, so "
                "logits cannot tell them apart; use a tokenizer with a piece for each option letter"
            )
        ids[first] = letter
    return np.asarray(list(ids), np.int32)


def _stop_ids(tokenizer: Tokenizer, template: Template) -> frozenset[int]:
    """Every token that ends an answer: the template's own, any that opens a turn, begins or ends a text, or pads.

    The unknown token is among them, as published: what follows it answers nothing.
    """
    turns = (tokenizer.user_id, tokenizer.assistant_id, tokenizer.eot_id, tokenizer.special_id(template.stop))
    known = (*turns, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id)
    return frozenset(id for id in known if id is not None)


def _buckets(texts: Sequence[Encoded], settings: Evaluation, row_shards: int) -> tuple[Packed, ...]:
    """The texts in groups of similar length, each packed into rows of the group's length."""
    lengths = np.asarray([len(text) for text in texts], np.int64)
    packed, low, length = [], 0, settings.row_length
    while low < settings.max_length and len(texts):
        chosen = np.flatnonzero((lengths > low) & (lengths <= length)).astype(np.int32)
        if len(chosen):
            packed.append(_pack(texts, chosen, length=length, settings=settings, row_shards=row_shards))
        low, length = length, min(2 * length, settings.max_length)
    return tuple(packed)


def _pack(
    texts: Sequence[Encoded],
    chosen: Int32[np.ndarray, " texts"],
    *,
    length: int,
    settings: Evaluation,
    row_shards: int,
) -> Packed:
    """First-fit, longest first, over as many rows as it takes; then the rows are dealt to the batches in turn."""
    sizes = np.asarray([len(texts[i]) for i in chosen], np.int64)
    chosen, sizes = chosen[order := np.argsort(-sizes, kind="stable")], sizes[order]
    trained = np.asarray([texts[i].num_trained for i in chosen], np.int64)
    packing = plan(sizes, trained, rows=len(chosen), length=length)
    used = int(packing.row.max()) + 1
    rows = _rows(used, -(-settings.batch_tokens // length), row_shards)
    num_batches = -(-used // rows)
    # Dealt in turn, so that every batch has about the same number of trained positions.
    row = (packing.row % num_batches) * rows + packing.row // num_batches

    tokens = np.concatenate([texts[i].tokens for i in chosen])
    owner = np.repeat(np.arange(len(chosen)), sizes)
    position = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = row[owner].astype(np.int64) * length + packing.offset[owner] + position
    arrays = {}
    for name, values in (("tokens", tokens), ("positions", position), ("segments", packing.segment[owner])):
        arrays[name] = np.zeros(num_batches * rows * length, np.int32)
        arrays[name][place] = values
        arrays[name] = arrays[name].reshape(num_batches, 1, rows, length)
    is_target = np.concatenate([texts[i].trained for i in chosen]) & (position > 0)
    entries, text_of_entry, first_entry = _entries(
        place[is_target] - 1, tokens[is_target], owner[is_target], group_size=rows // row_shards * length,
        num_groups=num_batches * row_shards,
    )  # fmt: skip
    arrays |= {name: value.reshape(num_batches, 1, row_shards, -1) for name, value in entries.items()}
    return Packed(
        texts=chosen,
        batches=tuple({name: value[b] for name, value in arrays.items()} for b in range(num_batches)),
        text_of_entry=text_of_entry,
        first_entry=first_entry,
    )


def _rows(used: int, most: int, row_shards: int) -> int:
    """Rows of a batch: about `most`, fewer when fewer are used, always a multiple of the shards."""
    rows = min(most, 1 << math.ceil(math.log2(used)))
    return -(-rows // row_shards) * row_shards


def _entries(
    place: Int[np.ndarray, " targets"],
    target: Int[np.ndarray, " targets"],
    owner: Int[np.ndarray, " targets"],
    *,
    group_size: int,
    num_groups: int,
) -> tuple[dict[str, np.ndarray], Int32[np.ndarray, " entries"], Int32[np.ndarray, " texts"]]:
    """Arrays [num_groups, cap] of predicting positions and their targets; the owner of each entry; first entries."""
    order = np.argsort(place)
    place, target, owner = place[order], target[order], owner[order]
    group = place // group_size
    counts = np.bincount(group, minlength=num_groups)
    cap_step = -(-group_size // CAP_STEPS)
    cap = -(-int(counts.max()) // cap_step) * cap_step
    entry = group * cap + np.arange(len(place)) - (np.cumsum(counts) - counts)[group]

    def spread(values: np.ndarray | float, dtype: type, empty: int) -> np.ndarray:
        array = np.full(num_groups * cap, empty, dtype)
        array[entry] = values
        return array

    arrays = {
        "trained_index": spread(place % group_size, np.int32, 0),
        "trained_targets": spread(target, np.int32, 0),
        "trained_weights": spread(1.0, np.float32, 0),
    }
    _, first = np.unique(owner, return_index=True)
    return arrays, spread(owner, np.int32, -1), entry[first].astype(np.int32)
