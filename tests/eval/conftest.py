"""A small tokenizer, a model drawn at random, and records of every kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.model.llama import LlamaConfig, init
from dynamics.record import Record, Turn

# Shapes are checked here as on the floors below; settings are left out, because their own messages are tested.
install_import_hook(["dynamics.eval.ability_eval", "dynamics.eval.prepared"], "beartype.beartype")

CORPUS = [
    "Which is red? A. sky B. rose C. leaf D. sand E. coal F. snow",
    "What is two plus three? 2 + 3 = 5, so the answer is 5",
    "gold silver copper iron true false T F yes no",
    "春风又绿江南岸 明月何时照我还 正确 错误",
] * 8


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS, vocab_size=440)


@pytest.fixture(scope="session")
def model(tokenizer):
    config = LlamaConfig(
        name="toy", vocab_size=tokenizer.padded_vocab_size(8), d_model=16, num_layers=2, num_heads=2, num_kv_heads=2,
        head_dim=8, d_ff=32,
    )  # fmt: skip
    return jax.jit(functools.partial(init, config))(jax.random.key(1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unigram:
    """A model whose logits are the same everywhere: hidden states are the number one."""

    logits: jax.Array

    @property
    def head(self):
        return self.logits[None, :]

    def __call__(self, tokens, positions, segments, index=None):
        return jnp.ones((*(tokens if index is None else index).shape, 1))


def record(ability, *contents, **fields):
    roles = ("user", "assistant")
    turns = tuple(Turn(role=roles[i % 2], content=text) for i, text in enumerate(contents))
    return Record(messages=turns, ability=ability, **fields)


def record_of_format_1(ability, question, *choices):
    return record(ability, question, choices[0], question_format=1, choices=choices)


@pytest.fixture(scope="session")
def records():
    """One or more of every kind, of very different lengths."""
    four = "Which is red? A. sky B. rose C. leaf D. sand"
    return [
        record("biology", four, "B"),
        record("understanding", "the sky is blue " * 9, "yes", "Which?\nA. sky\nB. rose\nC. leaf", "C"),
        record("history", "the rose is red. true or false?", "T"),
        record("chinese", "春风又绿（ ）岸", "江南"),
        record("math", "What is 2 + 3?", "2 + 3 = 5", answer="5"),
        record("ethics", four, "A, C"),
        record_of_format_1("code", "gold or iron?", "gold gold gold", "iron", "iron silver"),
        record_of_format_1("role_play", "hello", "yes", "no"),
        record("creative_writing", "a poem", "the sky is sand"),
    ]
