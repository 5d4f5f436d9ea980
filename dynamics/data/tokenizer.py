"""SentencePiece behind ids: text to ids and back, the four special ids of a conversation, deterministic training.

The only file that knows SentencePiece. Special tokens are control pieces of the model: text never encodes to one,
so a user who types "<eot>" cannot end a turn.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dynamics.errors import UserError

SPECIALS = ("<pad>", "<user>", "<assistant>", "<eot>")
_ASCII = "".join(chr(code) for code in range(0x21, 0x7F))  # each has a piece of its own, seen in the texts or not
_LETTERS = "ABCDEF"  # of choices: '▁A' ... '▁F' are pieces, so that an answer is told by one id
# Bytes; unknown, begin and end of text; ours; then the pieces that are always there, with the space.
_SMALLEST_VOCABULARY = 256 + 3 + len(SPECIALS) + len(_ASCII) + 1 + len(_LETTERS)
_LONGEST_TRAINING_LINE = 16_384  # bytes; longer lines are cut in pieces, never left out
_COVERAGE = 0.9995  # share of a large script's text whose characters have pieces; the rest falls back to bytes


class Tokenizer:
    """Text to ids and back.

    `specials` the model lacks are appended after its pieces, in their order, so published ids never move:
    DoIT's 49,953 pieces become 49,957. `fingerprint` depends on every piece, special and option.

    >>> tokenizer.encode("A") == [tokenizer.letter_id("A")]  # SentencePiece writes it '▁A'
    True
    """

    def __init__(self, model: bytes, *, specials: Sequence[str] = SPECIALS) -> None:
        proto = _parse(model)
        self._ids = _append_specials(proto, specials)
        self.model = proto.SerializeToString(deterministic=True)
        self.fingerprint = hashlib.sha256(self.model).hexdigest()[:16]
        self._processor = _processor(self.model)
        proto.normalizer_spec.add_dummy_prefix = False
        self._inside_text = _processor(proto.SerializeToString(deterministic=True))
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int | None = _optional(self._processor.bos_id())
        self.eos_id: int | None = _optional(self._processor.eos_id())
        self.unk_id: int | None = _optional(self._processor.unk_id())

    @staticmethod
    def load(path: str | Path, *, specials: Sequence[str] = SPECIALS) -> "Tokenizer":
        """The tokenizer of a SentencePiece `.model` file."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no tokenizer file {path}; give the path of a SentencePiece .model file")
        try:
            return Tokenizer(path.read_bytes(), specials=specials)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @staticmethod
    def from_bytes(data: bytes, *, specials: Sequence[str] = SPECIALS) -> "Tokenizer":
        return Tokenizer(data, specials=specials)

    def save(self, path: str | Path) -> None:
        """Write a SentencePiece model that holds the specials too; loading it gives an equal tokenizer."""
        Path(path).write_bytes(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.model == other.model

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, fingerprint {self.fingerprint})"

    @property
    def pad_id(self) -> int:
        return self.special_id("<pad>")

    @property
    def user_id(self) -> int:
        return self.special_id("<user>")

    @property
    def assistant_id(self) -> int:
        return self.special_id("<assistant>")

    @property
    def eot_id(self) -> int:
        return self.special_id("<eot>")

    def special_id(self, name: str) -> int:
        """The id of '<pad>', '<user>', ..., or of '<bos>' and '<eos>', which are the model's own."""
        known = {**self._ids, "<bos>": self.bos_id, "<eos>": self.eos_id}
        found = known.get(name)
        if found is None:
            offered = ", ".join(sorted(key for key, value in known.items() if value is not None))
            raise UserError(
                f"the tokenizer has no special token {name!r}; it has {offered}; "
                f"load it with specials=(*SPECIALS, {name!r}) or use another template"
            )
        return found

    def padded_vocab_size(self, multiple: int) -> int:
        """The number of ids rounded up, for embedding tables that devices can split evenly."""
        if multiple < 1:
            raise UserError(f"the vocabulary cannot be padded to a multiple of {multiple}; give a number from 1 up")
        return -(-self.vocab_size // multiple) * multiple

    def encode(self, text: str, *, starts_word: bool = True) -> list[int]:
        """The ids of a text, without begin or end of text and never a special id.

        With `starts_word` SentencePiece puts its space before the text ('A' becomes '▁A'), as for a text of its
        own; without, the text continues what stands before it ('A' stays 'A').
        """
        return (self._processor if starts_word else self._inside_text).encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; specials are left out, and so are ids beyond the vocabulary (padding of the head)."""
        return self._processor.decode([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

    def piece(self, id: int) -> str:
        """How one id is written: '▁A', '<eot>', '<0x0A>'."""
        return self._processor.id_to_piece(int(id))

    def letter_id(self, letter: str) -> int:
        """The id of a choice letter as answers are trained on: '▁A' (319 in LLaMA's tokenizer).

        DoIT's own evaluation reads this id, while its AGIEval and CMMLU scripts read `bare_piece_id`.
        """
        ids = self.encode(letter)
        if len(ids) != 1:
            raise UserError(
                f"the tokenizer writes {letter!r} as {[self.piece(i) for i in ids]}, so its first id tells no letter "
                "apart; use a tokenizer with a piece for it, such as one of train_tokenizer"
            )
        return ids[0]

    def bare_piece_id(self, letter: str) -> int:
        """The id of the piece 'A' without the leading space (29909 in LLaMA's tokenizer)."""
        found = self._processor.piece_to_id(letter)
        if found == self._processor.unk_id():
            raise UserError(f"the tokenizer has no piece {letter!r} without a leading space; use letter_id instead")
        return found


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer trained on texts; `vocab_size` counts every id, specials included. Equal texts give equal bytes.

    Byte-pair encoding with byte fallback and split digits, as LLaMA's own tokenizer. Text is taken as it is
    ('identity', no NFKC): full-width marks and the indentation of code carry meaning in Chinese and in programs,
    and decoding gives back exactly what was encoded. Every character gets a piece where all of them together take at
    most a quarter of the vocabulary; otherwise the rarest, 0.05 % of the text, are written as bytes. One thread,
    because the sums of several come in any order.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"a tokenizer of {vocab_size} ids is too small: bytes, ASCII, choice letters and special tokens alone "
            f"take {_SMALLEST_VOCABULARY}; ask for more, for example 1024"
        )
    lines = list(_training_lines(texts))
    few_characters = len(set().union(*lines)) <= vocab_size // 4
    # Loaded only when needed: everyone who only reads settings skips a native library.
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size - len(SPECIALS),
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0 if few_characters else _COVERAGE,
            required_chars=_ASCII,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            num_threads=1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=_LONGEST_TRAINING_LINE,
            hard_vocab_limit=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"<= (\d+)", str(error))
        advice = (
            f"these texts give at most {limit[1]}: set vocab_size to that or less, or give more varied text"
            if limit
            else f"SentencePiece says: {error}; a larger vocab_size may hold all characters of the texts"
        )
        raise UserError(f"a tokenizer of {vocab_size} ids could not be trained; {advice}") from error
    return Tokenizer(_with_choice_letters(written.getvalue()))


def _with_choice_letters(model: bytes) -> bytes:
    """The model with '▁A' ... '▁F' as pieces; those that were not learned take the place of the last merges.

    The last merges are parts of no other piece, so nothing else changes; with the lowest rank, '▁' and 'A' join only
    where nothing better does.
    """
    proto = _parse(model)
    wanted = [f"▁{letter}" for letter in _LETTERS]
    learned = {piece.piece for piece in proto.pieces}
    missing = [piece for piece in wanted if piece not in learned]
    merges = [p for p in proto.pieces if p.type == p.NORMAL and len(p.piece) > 1 and p.piece not in wanted]
    merges.sort(key=lambda piece: piece.score)
    if len(merges) < len(missing):
        raise UserError(
            f"a tokenizer of {len(proto.pieces) + len(SPECIALS)} ids has no room for the choice letters beside the "
            f"characters of its texts; ask for at least {len(missing) - len(merges)} more"
        )
    for letter, merge in zip(missing, merges, strict=False):
        merge.piece = letter
    return proto.SerializeToString(deterministic=True)


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    # SentencePiece trains on lines, and leaves out lines that are too long: cut them, so that all text counts.
    longest = _LONGEST_TRAINING_LINE // 4  # characters; UTF-8 takes at most four bytes each
    count = 0
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), longest):
                count += 1
                yield line[start : start + longest].replace("\0", "")
    if not count:
        raise UserError("no text to train a tokenizer on; give a source whose corpus() is not empty")


def _parse(model: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise UserError(
            f"these {len(model)} bytes are not a SentencePiece model; give a file that ends in .model"
        ) from error
    if not proto.pieces:
        raise UserError("the SentencePiece model holds no pieces: the file is empty or cut; copy it again")
    return proto


def _append_specials(proto: Any, specials: Sequence[str]) -> dict[str, int]:
    """Add missing specials to the model in place and return the id of each.

    Only control pieces are reused: a piece of another kind that looks like a special can be reached by typing it.
    """
    control = type(proto.pieces[0]).CONTROL
    taken = {piece.piece for piece in proto.pieces}
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type == control}
    found: dict[str, int] = {}
    for name in specials:
        if name in ids:
            found[name] = ids[name]
            continue
        if name in taken:
            raise UserError(
                f"the SentencePiece model has an ordinary piece {name!r}, so text could forge this special token; "
                "train the model with it as a control symbol or choose another name"
            )
        found[name] = len(proto.pieces)
        added = proto.pieces.add()
        added.piece, added.score, added.type = name, 0.0, control
        taken.add(name)
    return found


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _optional(id: int) -> int | None:
    return None if id < 0 else id
