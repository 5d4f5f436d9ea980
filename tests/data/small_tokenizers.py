"""One small tokenizer of every kind, trained on the same texts; shared by the tests of tokenizers and templates."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from dynamics.data.json_tokenizer import byte_level_json
from dynamics.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "def area(width, height):\n    return width * height\n",
    "你好，世界！今天的天气怎么样？一二三四五六七八九十",
    "The quick brown fox jumps over the lazy dog; 12 + 34 = 46.",
    "Answer: A\nAnd the answer is B.",
    "USER: ASSISTANT: [INST] user assistant system ### Instruction: Response: the cat sat",
] * 20
ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(split: str) -> bytes:
    """A byte-level tokenizer.json whose special tokens come first, as SmolLM2's."""
    trained = tokenizers.Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    # `show_progress` would write into the test's output.
    trainer = BpeTrainer(vocab_size=420, special_tokens=[*ENDS], show_progress=False, initial_alphabet=_alphabet())
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    roles = {"bos": 1, "eos": 2, "unk": 0}
    return byte_level_json(pieces, merges, split=split, special=range(len(ENDS)), added=(), roles=roles)


def _alphabet() -> list[str]:
    return sorted(ByteLevel.alphabet())


def converted(model: bytes) -> dict[str, Any]:
    """A SentencePiece model as a tokenizer.json with byte fallback, as Llama 2's is published."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        (-scores[piece], piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: (merge[0], vocab[merge[1]], vocab[merge[2]]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": piece.piece, **flags}
            for index, piece in enumerate(proto.pieces)
            if piece.type in (piece.CONTROL, piece.UNKNOWN)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for _, left, right in merges],
        },
    }


@functools.cache
def files() -> dict[str, bytes]:
    """The bytes of each kind's file."""
    model = train_tokenizer(TEXTS, vocab_size=512).model
    return {
        "sentencepiece": model,
        "bytes": byte_level("smollm"),
        "bytes of llama 3": byte_level("llama-bpe"),
        "converted": json.dumps(converted(model)).encode(),
    }


@functools.cache
def small(kind: str, specials: Sequence[str]) -> Tokenizer:
    return Tokenizer.from_bytes(files()[kind], specials=specials)


KINDS = ("sentencepiece", "bytes", "bytes of llama 3", "converted")
SPACED = ("sentencepiece", "converted")  # those that write a space before a text
