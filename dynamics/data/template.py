"""Chat templates: a conversation becomes a list of pieces, and each piece says whether it is trained on.

Everything is by construction. A template writes pieces in order; each piece is encoded by itself; the mask is laid
over the positions of its ids. Nothing is found by rendering a prefix again, by searching for a marker, or by the
value of an id, so a tokenizer whose padding is its end of text still learns to stop.

    DOIT        <user> ▁What ▁is ▁1+1 ? <eot> <assistant> ▁2 <eot>
    trained      0      0    0   0    0  0     0           1   1

`trained` marks the ids that are learned as *targets*: the assistant's words and the token that ends its turn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8, Int32

from dynamics.data.tokenizer import SPECIALS, Tokenizer
from dynamics.errors import UserError
from dynamics.record import Turn


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a rendered conversation: exactly one of `text` and `special` (a name such as '<eot>') is given."""

    role: str
    trained: bool
    text: str | None = None
    special: str | None = None
    starts_word: bool = True  # a space before the text, unless it opens the line; False where it continues the line

    def __post_init__(self) -> None:
        assert (self.text is None) != (self.special is None), "a piece is either text or a special token"


@dataclass(frozen=True, kw_only=True)
class Template:
    """A family: how a conversation is written. Members differ in markers only; `name` is for people and file names.

    `stop` names the special token that ends the assistant's turn, where decoding stops. `specials` are those that
    the tokenizer must have.
    """

    name: str
    stop: str
    specials: tuple[str, ...]

    def pieces(self, messages: Sequence[Turn], *, generate: bool = False) -> list[Piece]:
        """The pieces of a conversation; with `generate`, of one that ends with the user, and the answer's opening."""
        _check_turns(messages, generate=generate)
        written = list(self.write([Turn(role=turn.role, content=turn.content.strip()) for turn in messages]))
        if generate:
            written.extend(self.opening())
        return written

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        """The pieces of complete turns, contents stripped."""
        raise NotImplementedError

    def opening(self) -> list[Piece]:
        """What stands between a user's turn and the answer, where `write` puts it before the answer itself."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DoIT(Template):
    """`<user>` text `<eot>` `<assistant>` text `<eot>`, no begin of text; each segment is encoded separately.

    The original has no system role: a system turn at the start is written before the first user's text, with a
    blank line between; anywhere else it is an error.

    Source: train_sft.py of ChiyuSONG/dynamics-of-instruction-tuning.
    """

    name: str = "doit"
    stop: str = "<eot>"
    specials: tuple[str, ...] = ("<user>", "<assistant>", "<eot>")

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        for turn in _system_into_user(messages, self.name, lambda system, user: f"{system}\n\n{user}"):
            trained = turn.role == "assistant"
            yield Piece(special=f"<{turn.role}>", role=turn.role, trained=False)
            yield Piece(text=turn.content, role=turn.role, trained=trained)
            yield Piece(special="<eot>", role=turn.role, trained=trained)

    def opening(self) -> list[Piece]:
        return [Piece(special="<assistant>", role="assistant", trained=False)]


@dataclass(frozen=True, kw_only=True)
class Vicuna(Template):
    """`<bos>`system USER: text ASSISTANT: text`<eos>`USER: ... A system turn replaces the usual system sentence.

    Source: conversation.py of lm-sys/FastChat, "vicuna_v1.1".
    """

    name: str = "vicuna"
    stop: str = "<eos>"
    specials: tuple[str, ...] = ("<bos>", "<eos>")
    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        system, turns = _split_system(messages, self.name)
        yield Piece(special="<bos>", role="system", trained=False)
        before = f"{system or self.system} "
        for turn in turns:
            if turn.role == "user":
                yield Piece(text=f"{before}USER: {turn.content}", role="user", trained=False)
                before = ""
            else:
                yield from self.opening()
                yield Piece(text=turn.content, role="assistant", trained=True)
                yield Piece(special="<eos>", role="assistant", trained=True)

    def opening(self) -> list[Piece]:
        return [Piece(text="ASSISTANT:", role="assistant", trained=False)]


@dataclass(frozen=True, kw_only=True)
class Alpaca(Template):
    """`<bos>`preamble, '### Instruction:', text, '### Response:', text`<eos>`; later turns repeat the two headings.

    Made for one turn; several follow FastChat's reading of it. The record's input already stands in the user's text.
    A system turn replaces the preamble.

    Source: train.py of tatsu-lab/stanford_alpaca, PROMPT_DICT["prompt_no_input"].
    """

    name: str = "alpaca"
    stop: str = "<eos>"
    specials: tuple[str, ...] = ("<bos>", "<eos>")
    preamble: str = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        system, turns = _split_system(messages, self.name)
        yield Piece(special="<bos>", role="system", trained=False)
        before = f"{system or self.preamble}\n\n"
        for turn in turns:
            if turn.role == "user":
                text = f"{before}### Instruction:\n{turn.content}"
                yield Piece(text=text, role="user", trained=False)
                before = ""
            else:
                yield from self.opening()
                yield Piece(text=turn.content, role="assistant", trained=True, starts_word=False)
                yield Piece(special="<eos>", role="assistant", trained=True)

    def opening(self) -> list[Piece]:
        return [Piece(text="\n\n### Response:", role="assistant", trained=False, starts_word=False)]


@dataclass(frozen=True, kw_only=True)
class Tulu(Template):
    """`<bos>`<|user|> newline text newline <|assistant|> newline text`<eos>`newline; the markers are plain text.

    A system turn is written the same way, under <|system|>, wherever it stands.

    Source: open-instruct's finetune.py, as used by princeton-nlp/LESS.
    """

    name: str = "tulu"
    stop: str = "<eos>"
    specials: tuple[str, ...] = ("<bos>", "<eos>")

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        yield Piece(special="<bos>", role="system", trained=False)
        starts = True
        for turn in messages:
            if turn.role == "assistant":
                yield Piece(text="<|assistant|>\n", role="assistant", trained=False, starts_word=starts)
                yield Piece(text=turn.content, role="assistant", trained=True, starts_word=False)
                yield Piece(special="<eos>", role="assistant", trained=True)
                yield Piece(text="\n", role="assistant", trained=False, starts_word=False)
            else:
                text = f"<|{turn.role}|>\n{turn.content}\n"
                yield Piece(text=text, role=turn.role, trained=False, starts_word=starts)
            starts = False

    def opening(self) -> list[Piece]:
        return [Piece(text="<|assistant|>\n", role="assistant", trained=False, starts_word=False)]


@dataclass(frozen=True, kw_only=True)
class Llama2(Template):
    """`<bos>`[INST] text [/INST] text `<eos>` for each pair; a system text stands in <<SYS>> in the first.

    Source: generation.py of meta-llama/llama, `chat_completion`, which keeps the space before `<eos>`.
    """

    name: str = "llama2"
    stop: str = "<eos>"
    specials: tuple[str, ...] = ("<bos>", "<eos>")

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        for turn in _system_into_user(messages, self.name, lambda s, user: f"<<SYS>>\n{s}\n<</SYS>>\n\n{user}"):
            if turn.role == "user":
                yield Piece(special="<bos>", role="user", trained=False)
                yield Piece(text=f"[INST] {turn.content} [/INST]", role="user", trained=False)
            else:
                yield Piece(text=f"{turn.content} ", role="assistant", trained=True)
                yield Piece(special="<eos>", role="assistant", trained=True)

    def opening(self) -> list[Piece]:
        return []


@dataclass(frozen=True, kw_only=True)
class Mistral(Template):
    """`<bos>`, then [INST] text [/INST] text`<eos>` for each pair: one begin of text, no space before the end.

    There is no system role: a system turn at the start is written before the first user's text, with a blank line
    between; anywhere else it is an error. Conifer's author writes a space before the end; `Llama2` does that.

    Source: the v1 template of mistralai/Mistral-7B-Instruct-v0.1.
    """

    name: str = "mistral"
    stop: str = "<eos>"
    specials: tuple[str, ...] = ("<bos>", "<eos>")

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        yield Piece(special="<bos>", role="user", trained=False)
        for turn in _system_into_user(messages, self.name, lambda system, user: f"{system}\n\n{user}"):
            if turn.role == "user":
                yield Piece(text=f"[INST] {turn.content} [/INST]", role="user", trained=False)
            else:
                yield Piece(text=turn.content, role="assistant", trained=True)
                yield Piece(special="<eos>", role="assistant", trained=True)

    def opening(self) -> list[Piece]:
        return []


@dataclass(frozen=True, kw_only=True)
class ChatML(Template):
    """`<|im_start|>`role newline text`<|im_end|>`newline; load the tokenizer with `tokenizer_specials(CHATML)`.

    A system turn is written the same way wherever it stands. `system` is written first where the conversation does
    not begin with one.

    Source: OpenAI's chatml.md, without a system text; SmolLM2-135M-Instruct's chat template, with one.
    """

    name: str = "chatml"
    stop: str = "<|im_end|>"
    specials: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    system: str | None = None

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        if self.system is not None and messages[0].role != "system":
            messages = (Turn(role="system", content=self.system), *messages)
        for turn in messages:
            trained = turn.role == "assistant"
            yield from _chatml_opening(turn.role)
            yield Piece(text=turn.content, role=turn.role, trained=trained, starts_word=False)
            yield Piece(special="<|im_end|>", role=turn.role, trained=trained)
            yield Piece(text="\n", role=turn.role, trained=False, starts_word=False)

    def opening(self) -> list[Piece]:
        return list(_chatml_opening("assistant"))


@dataclass(frozen=True, kw_only=True)
class Llama3(Template):
    """`<bos>`, then `<|start_header_id|>`role`<|end_header_id|>`, a blank line and text`<|eot_id|>` for each turn.

    A system turn is written the same way wherever it stands; there is no default one and no date.

    Source: tokenizer.py of meta-llama/llama3, `ChatFormat`.
    """

    name: str = "llama3"
    stop: str = "<|eot_id|>"
    specials: tuple[str, ...] = ("<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        yield Piece(special="<bos>", role=messages[0].role, trained=False)
        for turn in messages:
            trained = turn.role == "assistant"
            yield from _llama3_opening(turn.role)
            yield Piece(text=turn.content, role=turn.role, trained=trained, starts_word=False)
            yield Piece(special="<|eot_id|>", role=turn.role, trained=trained)

    def opening(self) -> list[Piece]:
        return list(_llama3_opening("assistant"))


DOIT, VICUNA, ALPACA, TULU = DoIT(), Vicuna(), Alpaca(), Tulu()
LLAMA2, MISTRAL, CHATML, LLAMA3 = Llama2(), Mistral(), ChatML(), Llama3()
SMOLLM2 = ChatML(name="smollm2", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
TEMPLATES: tuple[Template, ...] = (DOIT, VICUNA, ALPACA, TULU, LLAMA2, MISTRAL, CHATML, SMOLLM2, LLAMA3)


def tokenizer_specials(template: Template) -> tuple[str, ...]:
    """The `specials` with which a tokenizer must be loaded to write this template."""
    own = [name for name in template.specials if name not in (*SPECIALS, "<bos>", "<eos>")]
    return (*SPECIALS, *own)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The ids of a conversation and which of them are trained on as targets.

    `branches` is there for a prompt with several replies, which follow one after another: 0 is the prompt, 1 and more
    the reply that an id belongs to (see `replies.py`).
    """

    tokens: Int32[np.ndarray, " length"]
    trained: Bool[np.ndarray, " length"]
    branches: Int8[np.ndarray, " length"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_trained(self) -> int:
        """How many targets it gives: the first id has nothing before it that could predict it."""
        return int(np.count_nonzero(self.trained[1:]))


def encode(template: Template, tokenizer: Tokenizer, messages: Sequence[Turn], *, generate: bool = False) -> Encoded:
    """The ids of a conversation under a template, and the positions that are trained on.

    Neighboring text pieces of equal `trained` are encoded as one text, so a boundary inside a prompt costs no token.
    A word that starts after a text on the same line has a space before it: SentencePiece puts one before every text,
    a byte-level tokenizer puts none, so it is written for it.
    """
    tokens: list[int] = []
    trained: list[bool] = []
    after_text = False
    for piece in _join_texts(template.pieces(messages, generate=generate)):
        if piece.special is not None:
            ids = [tokenizer.special_id(piece.special)]
        else:
            text = piece.text or ""
            if text and piece.starts_word and after_text and not tokenizer.leading_space:
                text = f" {text}"
            ids = tokenizer.encode(text, starts_word=piece.starts_word)
        after_text = piece.special is None
        tokens.extend(ids)
        trained.extend([piece.trained] * len(ids))
    return Encoded(tokens=np.asarray(tokens, dtype=np.int32), trained=np.asarray(trained, dtype=np.bool_))


def _join_texts(pieces: Sequence[Piece]) -> list[Piece]:
    """Texts that stand side by side and share `trained` become one; the second's leading space is written out."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is None or last.text is None or piece.text is None or last.trained != piece.trained:
            joined.append(piece)
            continue
        text = last.text + (" " if piece.starts_word else "") + piece.text
        joined[-1] = Piece(text=text, role=last.role, trained=last.trained, starts_word=last.starts_word)
    return joined


def _chatml_opening(role: str) -> Iterator[Piece]:
    yield Piece(special="<|im_start|>", role=role, trained=False)
    yield Piece(text=f"{role}\n", role=role, trained=False, starts_word=False)


def _llama3_opening(role: str) -> Iterator[Piece]:
    yield Piece(special="<|start_header_id|>", role=role, trained=False)
    yield Piece(text=role, role=role, trained=False, starts_word=False)
    yield Piece(special="<|end_header_id|>", role=role, trained=False)
    yield Piece(text="\n\n", role=role, trained=False, starts_word=False)


def _check_turns(messages: Sequence[Turn], *, generate: bool) -> None:
    if not messages:
        raise UserError("a conversation without turns cannot be written; leave the record out")
    if generate and messages[-1].role != "user":
        raise UserError(
            f"an answer was asked for after a turn of the {messages[-1].role}; "
            "the last turn must be the user's: leave out the reference answer"
        )
    for index, turn in enumerate(messages):
        if turn.role not in ("system", "user", "assistant"):
            raise UserError(f"messages[{index}].role is {turn.role!r}; allowed: system, user, assistant")


def _split_system(messages: Sequence[Turn], name: str) -> tuple[str | None, Sequence[Turn]]:
    """(system text or None, the other turns); a system turn that does not come first has no place here."""
    for index, turn in enumerate(messages[1:], 1):
        if turn.role == "system":
            raise UserError(
                f"messages[{index}] is a system turn, which template {name!r} can only write at the start; "
                "move it there, make it a user turn, or use the template 'tulu' or 'chatml'"
            )
    if messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages


def _system_into_user(messages: Sequence[Turn], name: str, join: Callable[[str, str], str]) -> Sequence[Turn]:
    """The turns with a system text joined into the first user turn, for templates without a system role."""
    system, turns = _split_system(messages, name)
    if system is None:
        return turns
    if not turns or turns[0].role != "user":
        raise UserError(
            f"template {name!r} writes a system turn into the user's turn after it, but none follows; "
            "add a user turn or use the template 'tulu' or 'chatml'"
        )
    return [Turn(role="user", content=join(system, turns[0].content)), *turns[1:]]
