"""Hugging Face's `tokenizer.json` files as tokenizers. The only file that knows the package `tokenizers`.

Two shapes are read, both byte-pair encoding that can write any text: over bytes (SmolLM2, Llama 3) and over
characters with bytes for those that have no piece (Llama 2, converted from SentencePiece).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamics.data.tokenizer import SPECIALS, Tokenizer
from dynamics.errors import UserError

ROLES = ("bos", "eos", "unk")
# Where neither the file nor its neighbors say it: names that begin and end a text wherever they are special tokens.
_USUAL = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>")}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

Roles = Mapping[str, str | None]  # 'bos', 'eos', 'unk' to the token that plays it, or to None: nobody does


class JsonTokenizer(Tokenizer):
    """The tokenizer of a `tokenizer.json`.

    `model` and `fingerprint` are those of a canonical form: sorted keys, our specials appended, begin and end of text
    noted beside their tokens (a field "roles", which other readers ignore), truncation, padding and dropout off,
    because each of them would change or cut a text in silence.

    Decoding gives back what was encoded, with one exception that is the file's own: where a `Metaspace` puts the
    leading space (Llama 2 has `Prepend`), it takes a text's own first space for it.
    """

    def __init__(self, data: bytes, *, specials: Sequence[str] = SPECIALS, roles: Roles | None = None) -> None:
        document = _parse(data)
        played = _mark_roles(document, roles or {})
        ids = _append_specials(document, specials)
        _forbid_specials(document)
        inside = {**document, **{part: _without_space(document.get(part)) for part in ("normalizer", "pre_tokenizer")}}
        model = _canonical(document)
        self._processor = _processor(model)
        leading_space = inside != document
        self._inside_text = _processor(_canonical(inside)) if leading_space else self._processor
        _check_ids(document, self._processor)
        super().__init__(
            model,
            vocab_size=1 + max(self._processor.get_vocab(with_added_tokens=True).values()),
            specials=ids,
            bos_id=played["bos"],
            eos_id=played["eos"],
            unk_id=played["unk"],
            leading_space=leading_space,
        )

    def encode(self, text: str, *, starts_word: bool = True) -> list[int]:
        processor = self._processor if starts_word else self._inside_text
        return processor.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids if 0 <= int(i) < self.vocab_size], skip_special_tokens=True)

    def piece(self, id: int) -> str:
        return self._processor.id_to_token(int(id))

    def piece_id(self, piece: str) -> int | None:
        return self._processor.token_to_id(piece)


def roles_beside(file: Path) -> Roles:
    """Which tokens begin and end a text according to the files beside a `tokenizer.json`; only what they say."""
    if file.name != "tokenizer.json":
        return {}
    roles: dict[str, str | None] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one wins, as in transformers
        for role in ROLES:
            token = _neighbor(file, name).get(f"{role}_token", ...)
            if token is not ...:
                roles[role] = token["content"] if isinstance(token, dict) else token
    names = {}
    for name in ("generation_config.json", "config.json"):
        for role in {"bos", "eos"} - set(roles):
            id = _neighbor(file, name).get(f"{role}_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if id is not None:
                names = names or {id: token for token, id in _all_ids(_parse(file.read_bytes())).items()}
                roles[role] = names.get(id, f"id {id}")
    return roles


# How text is split before pieces are joined, under the names that GGUF files give them. Patterns are the models' own.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = {**_GPT2, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "llama-bpe": [_split(_LLAMA3), _BYTES],
    "default": [_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_WORDS), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _BYTES],
}


def byte_level_json(
    pieces: Sequence[str],
    merges: Sequence[str],
    *,
    split: str,
    special: Collection[int],
    added: Collection[int],
    roles: Mapping[str, int],
) -> bytes:
    """A byte-level `tokenizer.json` from its parts: `split` is a name of PRE_TOKENIZERS.

    `special` are ids that text never encodes to; `added` are ids that are found in text before it is split. `roles`
    gives the ids of 'bos', 'eos' and 'unk', as far as there are such.
    """
    if split not in PRE_TOKENIZERS:
        raise UserError(f"pre-tokenizer {split!r} is not known; known: {', '.join(PRE_TOKENIZERS)}")
    found = [{"id": i, "content": pieces[i], "special": i in special, **_FLAGS} for i in sorted({*special, *added})]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": found,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[split]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split == "llama-bpe",  # Llama 3 takes a whole word that has a piece before any merge
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    _mark_roles(document, {role: pieces[id] for role, id in roles.items()})
    return _canonical(document)


def _parse(data: bytes) -> dict[str, Any]:
    """The file as a dict, in the one form that equal tokenizers share."""
    try:
        document = json.loads(data)
    except ValueError as error:  # of the encoding, too
        raise UserError(
            f"these {len(data)} bytes are not a whole tokenizer.json ({error}); the file may be cut: copy it again"
        ) from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError("this JSON has no model with a vocab, so it is not a tokenizer.json; give one")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UserError(f"the tokenizer.json holds a model of type {kind!r}; BPE is what LLaMA models have: give one")
    if not (model.get("byte_fallback") or "ByteLevel" in _types(document.get("pre_tokenizer"))):
        raise UserError(
            "the tokenizer.json is neither byte-level (a ByteLevel pre_tokenizer) nor has it byte_fallback, so "
            "characters without a piece would be lost; give one that is either"
        )
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    added = sorted((dict(token) for token in document.get("added_tokens") or []), key=lambda token: token["id"])
    # Each of the three would cut, pad or vary what a text becomes.
    return document | {
        "truncation": None,
        "padding": None,
        "model": model | {"dropout": None, "merges": merges},
        "added_tokens": added,
    }


def _mark_roles(document: dict[str, Any], roles: Roles) -> dict[str, int | None]:
    """Note in the document who begins and ends a text, and return their ids. What is given beats what it says."""
    tokens = document["added_tokens"]
    marked = {role: token["content"] for token in tokens for role in token.get("roles", ())}
    specials = {token["content"] for token in tokens if token.get("special")}
    usual = {role: next((name for name in names if name in specials), None) for role, names in _USUAL.items()}
    said = marked or {**usual, "unk": document["model"].get("unk_token")}
    names = {role: roles[role] if role in roles else said.get(role) for role in ROLES}
    ids = _all_ids(document)
    for role, name in names.items():
        if name is not None and name not in ids:
            raise UserError(
                f"the files beside tokenizer.json give {role} as {name!r}, which it does not hold; "
                "correct tokenizer_config.json or take a tokenizer.json of the same model"
            )
    # A begin or end of text that is no special token yet could be typed.
    for name in {name for name in names.values() if name is not None} - {token["content"] for token in tokens}:
        tokens.append({"id": ids[name], "content": name, "special": True, **_FLAGS})
    tokens.sort(key=lambda token: token["id"])
    for token in tokens:
        token.pop("roles", None)
        played = [role for role, name in names.items() if name == token["content"]]
        if played:
            token.update(roles=played, special=True)
    return {role: None if name is None else ids[name] for role, name in names.items()}


def _append_specials(document: dict[str, Any], specials: Sequence[str]) -> dict[str, int]:
    """Add missing specials to the document in place and return the id of each."""
    tokens = document["added_tokens"]
    special = {token["content"]: token["id"] for token in tokens if token.get("special")}
    ids = _all_ids(document)
    found: dict[str, int] = {}
    for name in specials:
        if name not in special:
            if name in ids:
                raise UserError(
                    f"the tokenizer.json has an ordinary token {name!r}, so text could forge this special token; "
                    'set "special": true for it under "added_tokens" or choose another name'
                )
            special[name] = ids[name] = 1 + max(ids.values())
            tokens.append({"id": special[name], "content": name, "special": True, **_FLAGS})
        found[name] = special[name]
    return found


def _forbid_specials(document: dict[str, Any]) -> None:
    """Leave out merges that would spell a special token, as SentencePiece does with its control pieces."""
    special = {token["content"] for token in document["added_tokens"] if token.get("special")}
    model = document["model"]
    document["model"] = model | {"merges": [merge for merge in model["merges"] if "".join(merge) not in special]}


def _without_space(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space of its own before a text."""
    if node is None or node["type"] == "Prepend":
        return None
    if node["type"] == "Sequence":
        part = "normalizers" if "normalizers" in node else "pretokenizers"
        return {**node, part: [kept for child in node[part] if (kept := _without_space(child)) is not None]}
    if node["type"] == "Metaspace" and node.get("prepend_scheme") != "never":
        # The older field says the same in another way, and the two must agree.
        return {name: value for name, value in node.items() if name != "add_prefix_space"} | {"prepend_scheme": "never"}
    return {**node, "add_prefix_space": False} if node.get("add_prefix_space") else node


def _types(node: Any) -> set[str]:
    """The types of a normalizer or pre-tokenizer and of all its parts."""
    if not isinstance(node, dict):
        return set()
    parts = [*node.get("normalizers", ()), *node.get("pretokenizers", ())]
    return {node.get("type", "")}.union(*map(_types, parts))


def _all_ids(document: dict[str, Any]) -> dict[str, int]:
    return {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}


def _check_ids(document: dict[str, Any], processor: Any) -> None:
    """The library counts added tokens itself; a file whose ids it would change is refused."""
    for name, id in _all_ids(document).items():
        found = processor.token_to_id(name)
        if found != id:
            raise UserError(
                f"the tokenizer.json gives token {name!r} the id {id}, but its ids are not consecutive and the package "
                f"tokenizers reads {found}; take the file of the published model"
            )


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")


def _processor(model: bytes) -> Any:
    # Loaded only when needed: everyone who only reads settings skips a native library.
    import tokenizers

    try:
        processor = tokenizers.Tokenizer.from_str(model.decode("utf-8"))
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f"the package tokenizers {tokenizers.__version__} cannot read this tokenizer.json: {error}"
        ) from error
    processor.encode_special_tokens = True  # '<|im_end|>' in a text is six characters and more, never a token
    return processor


def _neighbor(file: Path, name: str) -> dict[str, Any]:
    path = file.parent / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON ({error}); correct it, or give tokenizer.json in a folder of its own"
        ) from error
    return found if isinstance(found, dict) else {}
