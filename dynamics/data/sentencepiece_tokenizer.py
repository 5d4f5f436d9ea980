"""SentencePiece models as tokenizers, and deterministic training. The only file that knows SentencePiece.

Special tokens are control pieces of the model: text never encodes to one.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dynamics.data.tokenizer import SPECIALS, Tokenizer
from dynamics.errors import UserError

_ASCII = "".join(chr(code) for code in range(0x21, 0x7F))  # each has a piece of its own, seen in the texts or not
_LETTERS = "ABCDEF"  # of choices: '▁A' ... '▁F' are pieces, so that an answer is told by one id
# Bytes; unknown, begin and end of text; ours; then the pieces that are always there, with the space.
_SMALLEST_VOCABULARY = 256 + 3 + len(SPECIALS) + len(_ASCII) + 1 + len(_LETTERS)
_LONGEST_TRAINING_LINE = 16_384  # bytes; longer lines are cut in pieces, never left out
_COVERAGE = 0.9995  # share of a large script's text whose characters have pieces; the rest falls back to bytes


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer of a SentencePiece model."""

    def __init__(self, model: bytes, *, specials: Sequence[str] = SPECIALS) -> None:
        proto = _parse(model)
        ids = _append_specials(proto, specials)
        model = proto.SerializeToString(deterministic=True)
        self._processor = _processor(model)
        super().__init__(
            model,
            vocab_size=self._processor.get_piece_size(),
            specials=ids,
            bos_id=_optional(self._processor.bos_id()),
            eos_id=_optional(self._processor.eos_id()),
            unk_id=_optional(self._processor.unk_id()),
            leading_space=proto.normalizer_spec.add_dummy_prefix,
        )
        proto.normalizer_spec.add_dummy_prefix = False
        self._inside_text = _processor(proto.SerializeToString(deterministic=True))

    def encode(self, text: str, *, starts_word: bool = True) -> list[int]:
        return (self._processor if starts_word else self._inside_text).encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

    def piece(self, id: int) -> str:
        return self._processor.id_to_piece(int(id))

    def piece_id(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)
        return None if found == self._processor.unk_id() else found


def train(texts: Iterable[str], *, vocab_size: int) -> SentencePieceTokenizer:
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

    if sentencepiece.__version__.startswith(("0.1.", "0.2.0", "0.2.1")):
        raise UserError(
            f"sentencepiece {sentencepiece.__version__} is here, which ends the process when it trains with these "
            "settings; install 0.2.3 or newer (the extra 'beam' holds it back), or give a trained tokenizer"
        )
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
    return SentencePieceTokenizer(_with_choice_letters(written.getvalue()))


def model_of_pieces(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    roles: Mapping[str, int],
    leading_space: bool,
) -> bytes:
    """A SentencePiece model from its parts: byte-pair encoding with byte fallback, text taken as it is, as LLaMA's.

    `kinds` are SentencePiece's own numbers (1 normal, 2 unknown, 3 control, ...); `roles` gives the ids of 'unk',
    'bos' and 'eos', as far as there are such.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    trained, normalizer = proto.trainer_spec, proto.normalizer_spec
    trained.model_type, trained.vocab_size, trained.byte_fallback = trained.BPE, len(pieces), True
    for role in ("unk", "bos", "eos"):
        setattr(trained, f"{role}_id", roles.get(role, -1))
        if role in roles:
            setattr(trained, f"{role}_piece", pieces[roles[role]])  # the processor finds ids by these names
    normalizer.name, normalizer.add_dummy_prefix = "identity", leading_space
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return proto.SerializeToString(deterministic=True)


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
            f"these {len(model)} bytes are not a SentencePiece model, nor do they begin as a tokenizer.json does; "
            "give a file that ends in .model or a tokenizer.json"
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
