"""Text to ids and back: one base class, its two kinds, the special tokens of a conversation.

SentencePiece models (`sentencepiece_tokenizer.py`) and the `tokenizer.json` of Hugging Face's package `tokenizers`
(`json_tokenizer.py`) have the same methods and obey the same laws. Text never encodes to a special token in either,
so a user who types "<eot>" cannot end a turn.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dynamics.errors import UserError

SPECIALS = ("<pad>", "<user>", "<assistant>", "<eot>")
FILES = ("tokenizer.json", "tokenizer.model")  # in a model's folder, the first that is there


class Tokenizer:
    """Text to ids and back: the family's base class; `Tokenizer.load` gives the member that a file is of.

    `specials` the file lacks are appended after its ids, in their order, so published ids never move: DoIT's 49,953
    pieces become 49,957. `fingerprint` depends on every piece, special and option.

    Every member has `vocab_size`, `bos_id`, `eos_id` and `unk_id` (None where it has none), `specials` (name to id),
    `model` (the bytes of its file, specials included), and `leading_space`: whether `encode` puts a space of its own
    before a text that starts a word, as SentencePiece does and byte-level tokenizers do not.

    >>> tokenizer.encode("A") == [tokenizer.letter_id("A")]  # SentencePiece writes it '▁A', a byte-level one 'A'
    True
    """

    def __init__(
        self,
        model: bytes,
        *,
        vocab_size: int,
        specials: Mapping[str, int],
        bos_id: int | None,
        eos_id: int | None,
        unk_id: int | None,
        leading_space: bool,
    ) -> None:
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()[:16]
        self.vocab_size = vocab_size
        self.specials = dict(specials)
        self.bos_id, self.eos_id, self.unk_id = bos_id, eos_id, unk_id
        self.leading_space = leading_space

    @staticmethod
    def load(path: str | Path, *, specials: Sequence[str] = SPECIALS) -> "Tokenizer":
        """The tokenizer of a SentencePiece `.model` file, of a `tokenizer.json`, or of a folder that holds one.

        A `tokenizer.json` does not say which tokens begin and end a text. The files that published models put beside
        it do: `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`, `config.json`.
        """
        from dynamics.data.json_tokenizer import roles_beside

        path = Path(path)
        file = next((path / name for name in FILES if (path / name).is_file()), None) if path.is_dir() else path
        if file is None:
            raise UserError(f"folder {path} holds no tokenizer; it needs a file {' or '.join(FILES)}")
        if not file.is_file():
            raise UserError(
                f"no tokenizer file {path}; give the path of a SentencePiece .model file, of a tokenizer.json, "
                "or of a model's folder"
            )
        try:
            return _member(file.read_bytes(), specials, roles_beside(file))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error

    @staticmethod
    def from_bytes(data: bytes, *, specials: Sequence[str] = SPECIALS) -> "Tokenizer":
        """The tokenizer of a file's bytes, of either kind."""
        return _member(data, specials, {})

    def save(self, path: str | Path) -> None:
        """Write a file of its own kind that holds the specials too; loading it gives an equal tokenizer."""
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
        known = {**self.specials, "<bos>": self.bos_id, "<eos>": self.eos_id}
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

        With `starts_word` a tokenizer with `leading_space` puts its space before the text ('A' becomes '▁A'), as for
        a text of its own; without, the text continues what stands before it ('A' stays 'A'). One without
        `leading_space` writes both alike.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; specials are left out, and so are ids beyond the vocabulary (padding of the head)."""
        raise NotImplementedError

    def piece(self, id: int) -> str:
        """How the file writes one id: '▁A', '<eot>', '<0x0A>'; 'ĠA' for ' A' in a byte-level one."""
        raise NotImplementedError

    def piece_id(self, piece: str) -> int | None:
        """The id that the file writes so, or None."""
        raise NotImplementedError

    def letter_id(self, letter: str) -> int:
        """The id of a choice letter as answers are trained on: '▁A' (319 in LLaMA's tokenizer).

        DoIT's own evaluation reads this id, while its AGIEval and CMMLU scripts read `bare_piece_id`. In a byte-level
        tokenizer the two are one, 'A': it puts no space of its own, and what stands before the letter decides. After
        a template's special token or newline the answer is 'A', after a text on the same line it is ' A' ('ĠA').
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
        found = self.piece_id(letter)
        if found is None:
            raise UserError(f"the tokenizer has no piece {letter!r} without a leading space; use letter_id instead")
        return found


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A SentencePiece tokenizer trained on texts; `vocab_size` counts every id, specials included.

    Equal texts give equal bytes. How it is trained: `sentencepiece_tokenizer.train`.
    """
    from dynamics.data import sentencepiece_tokenizer

    return sentencepiece_tokenizer.train(texts, vocab_size=vocab_size)


def _member(data: bytes, specials: Sequence[str], roles: Mapping[str, str | None]) -> Tokenizer:
    """The kind that the bytes are of. Imported here: the kinds import their base class from this file."""
    from dynamics.data.json_tokenizer import JsonTokenizer
    from dynamics.data.sentencepiece_tokenizer import SentencePieceTokenizer

    if data.lstrip()[:1] == b"{":
        return JsonTokenizer(data, specials=specials, roles=roles)
    return SentencePieceTokenizer(data, specials=specials)
