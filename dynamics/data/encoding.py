"""What a source gives to be prepared, and how it becomes documents: conversations, pairs, or plain text."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dynamics.data.packing import LengthCounts, OverLong, apply_length_policy
from dynamics.data.replies import (
    MISMATCHED,
    Branched,
    Replies,
    ReplyCounts,
    encode_replies,
    fit_replies,
    mismatched_replies,
)
from dynamics.data.shards import Document
from dynamics.data.sources import Source
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Turn


@dataclass(frozen=True, kw_only=True)
class Item:
    """What becomes a document, or several: `content` is a conversation, a pair or a plain text."""

    ability: str
    key: str
    content: tuple[Turn, ...] | Pair | str
    place: str = ""  # where it was read, for messages

    @property
    def size(self) -> int:
        """Characters."""
        if isinstance(self.content, str):
            return len(self.content)
        if isinstance(self.content, Pair):
            prompt = sum(len(turn.content) for turn in self.content.prompt)
            return prompt + len(self.content.chosen or "") + len(self.content.rejected or "")
        return sum(len(turn.content) for turn in self.content)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A family: how items become documents, and what is counted on the way, for each ability."""

    length: int  # tokens that a document has at most

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Conversations(Work):
    """A conversation is a document under a template; longer ones meet the length policy."""

    template: Template
    over_long: OverLong

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        documents: list[Document] = []
        counts: dict[str, dict[str, int]] = {}
        for ability in dict.fromkeys(item.ability for item in items):
            encoded = [(item.key, self._encode(tokenizer, item)) for item in items if item.ability == ability]
            uncut = {key: len(one) for key, one in encoded}
            kept, policy = apply_length_policy(encoded, length=self.length, policy=self.over_long)
            documents += [Document(key=key, encoded=one, uncut=uncut[key]) for key, one in kept]
            counts[ability] = {"records": len(encoded), **asdict(policy)} | _totals([one for _, one in kept])
        return documents, counts

    def _encode(self, tokenizer: Tokenizer, item: Item) -> Encoded:
        assert isinstance(item.content, tuple), "a conversation has turns"
        try:
            return encode(self.template, tokenizer, item.content)
        except UserError as error:
            place = f" of {item.place}" if item.place else ""
            raise UserError(f"record {item.key}{place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PairReplies(Work):
    """A pair is a document under a template: its prompt once, then its replies (see `replies.py`).

    With `mismatched` each has a reply to another prompt too, of the next pair of the same part of the store that asks
    something else: drawn here, over all pairs of the part, before any run takes a slice of them. It leaves the pair's
    own tokens, and which pairs are kept, as they are without. `judgements` counts the pairs of one reply, `no_mismatch`
    those kept without a reply to another prompt: there was none, or no room for it (`mismatches_left_out`). `uncut` of
    a document tells what it lost of its own tokens.
    """

    template: Template
    replies: Replies
    over_long: OverLong
    mismatched: bool = False

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        pairs = [item.content for item in items if isinstance(item.content, Pair)]
        assert len(pairs) == len(items), "only pairs have replies"
        others = mismatched_replies(pairs) if self.mismatched else [None] * len(pairs)
        documents: list[Document] = []
        counts: dict[str, dict[str, int]] = {}
        for ability in dict.fromkeys(item.ability for item in items):
            policy, kept, judgements, no_mismatch = ReplyCounts(), list[Document](), 0, 0
            mine = [one for one in zip(items, pairs, others, strict=True) if one[0].ability == ability]
            for item, pair, other in mine:
                whole = self._encode(tokenizer, item, pair, other)
                fitted, done = fit_replies(whole, self.replies, length=self.length, policy=self.over_long, key=item.key)
                policy += done
                if fitted is not None:
                    lost = _own_tokens(whole) - _own_tokens(fitted)
                    kept.append(Document(key=item.key, encoded=fitted.document(), uncut=len(fitted) + lost))
                    judgements += pair.chosen is None or pair.rejected is None
                    no_mismatch += self.mismatched and fitted.replies[-1].branch != MISMATCHED
            documents += kept
            counts[ability] = {
                "records": len(mine), **asdict(policy), "judgements": judgements, "no_mismatch": no_mismatch,
                **_totals([document.encoded for document in kept]),
            }  # fmt: skip
        return documents, counts

    def _encode(self, tokenizer: Tokenizer, item: Item, pair: Pair, other: str | None) -> Branched:
        try:
            return encode_replies(self.template, tokenizer, pair, mismatched=other)
        except UserError as error:
            place = f" of {item.place}" if item.place else ""
            raise UserError(f"pair {item.key}{place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PlainText(Work):
    """A text and an end token, every token trained on; long ones in pieces of `length`, with keys 'number/start'.

    A lone last token is left out: it predicts nothing.
    """

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        end = tokenizer.eot_id if tokenizer.eos_id is None else tokenizer.eos_id
        documents: list[Document] = []
        for item in items:
            assert isinstance(item.content, str), "a plain text is one"
            ids = np.asarray([*tokenizer.encode(item.content), end], dtype=np.int32)
            for start in range(0, max(len(ids) - 1, 1), self.length):
                piece = ids[start : start + self.length]
                encoded = Encoded(tokens=piece, trained=np.ones(len(piece), dtype=np.bool_))
                documents.append(Document(key=f"{item.key}/{start}", encoded=encoded, uncut=len(piece)))
        return documents, {"": {"records": len(items)} | _totals([one.encoded for one in documents])}


def _own_tokens(pair: Branched) -> int:
    """Those of prompt, chosen and rejected, the prompt once."""
    return len(pair.prompt) + sum(len(reply) for reply in pair.replies if reply.branch != MISMATCHED)


def _totals(documents: Sequence[Encoded]) -> dict[str, int]:
    return {"tokens": sum(map(len, documents)), "trained": sum(one.num_trained for one in documents)}


class TrainRecords:
    """The train records of a source as items with keys 'ability/id', ability by ability and each in file order.

    `rejected` counts the lines that gave no record, of the abilities that have been gone through.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rejected: dict[str, int] = {}

    def __iter__(self) -> Iterator[Item]:
        for ability in self._source.abilities():
            loaded = self._source.load(ability, "train")
            self.rejected[ability] = len(loaded.rejected)
            for record in loaded.records:
                place = f"{record.source} idx {record.idx}" if record.idx is not None else record.source
                yield Item(ability=ability, key=f"{ability}/{record.id}", content=record.messages, place=place)

    def notes(self) -> dict[str, dict[str, int]]:
        return {ability: {"rejected": count} for ability, count in self.rejected.items()}


class PairItems:
    """The pairs of a source's split as items with keys 'ability/id', ability by ability and each in file order.

    `rejected` counts the rows that gave no pair, of the abilities that have been gone through.
    """

    def __init__(self, source: Source, split: str) -> None:
        self._source = source
        self._split = split
        self.rejected: dict[str, int] = {}

    def __iter__(self) -> Iterator[Item]:
        for ability in self._source.paired():
            loaded = self._source.pairs(ability, self._split)
            self.rejected[ability] = len(loaded.rejected)
            for pair in loaded.pairs:
                yield Item(ability=ability, key=f"{ability}/{pair.id}", content=pair, place=pair.source)

    def notes(self) -> dict[str, dict[str, int]]:
        return {ability: {"rejected": count} for ability, count in self.rejected.items()}


class CorpusTexts:
    """The plain text of a source as items, numbered from 0."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Item]:
        for number, text in enumerate(self._source.corpus()):
            yield Item(ability="", key=str(number), content=text)

    def notes(self) -> dict[str, dict[str, int]]:
        return {}


def length_counts(counts: dict[str, int]) -> LengthCounts:
    """What the length policy did, out of an ability's counts in a store's notes."""
    return LengthCounts(**{name: counts.get(name, 0) for name in ("kept", "truncated", "dropped", "no_trained_token")})
