"""Decoding with a cache equals decoding without one, alone or in a batch."""

import dataclasses

import jax
import numpy as np
import pytest

from dynamics.errors import UserError
from dynamics.model.llama import LlamaConfig, init
from dynamics.model.sample import _decode, greedy

CONFIG = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24
)
rng = np.random.default_rng(0)
PROMPTS = [rng.integers(1, 64, length).tolist() for length in (3, 7, 1, 8, 5)]
SETTINGS = {"max_new_tokens": 6, "stop_ids": (), "pad_id": 0, "batch_size": 4, "bucket": 4}
forward = jax.jit(lambda model, tokens, positions, segments: model(tokens, positions, segments) @ model.head)


@pytest.fixture(scope="module")
def model():
    return init(CONFIG, jax.random.key(0))


def without_cache(model, prompt, steps):
    """The definition: run the whole row again for every token. Returns tokens and the logits that chose the last."""
    tokens = list(prompt)
    for _ in range(steps):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(tokens)] = tokens
        segments = (np.arange(16) < len(tokens)).astype(np.int32)[None]
        logits = np.asarray(forward(model, row, np.arange(16, dtype=np.int32)[None], segments))[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], logits


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_cache_changes_nothing(scan_layers):
    model = init(dataclasses.replace(CONFIG, scan_layers=scan_layers), jax.random.key(0))
    for prompt, result in zip(PROMPTS, greedy(model, PROMPTS, **SETTINGS), strict=True):
        tokens, logits = without_cache(model, prompt, 6)
        assert result.tokens == tokens
        assert not result.stopped
        np.testing.assert_allclose(result.last_logits, logits, atol=1e-4)


def test_a_batch_equals_its_prompts_one_by_one(model):
    together = greedy(model, PROMPTS, **SETTINGS)
    for prompt, result in zip(PROMPTS, together, strict=True):
        (alone,) = greedy(model, [prompt], **SETTINGS)
        assert alone.tokens == result.tokens
        np.testing.assert_allclose(alone.last_logits, result.last_logits, atol=1e-4)


def test_a_stop_token_ends_its_row_only_and_is_not_returned(model):
    free = greedy(model, PROMPTS, **SETTINGS)
    stop = free[0].tokens[2]
    cut = greedy(model, PROMPTS, **(SETTINGS | {"stop_ids": (stop,)}))
    for before, after in zip(free, cut, strict=True):
        end = before.tokens.index(stop) if stop in before.tokens else None
        assert after.tokens == before.tokens[:end]
        assert after.stopped == (end is not None)
        if after.stopped:
            assert after.last_logits.argmax() == stop


def test_one_new_token_gives_the_logits_after_the_prompt(model):
    (result,) = greedy(model, PROMPTS[:1], **(SETTINGS | {"max_new_tokens": 1}))
    np.testing.assert_allclose(result.last_logits, without_cache(model, PROMPTS[0], 1)[1], atol=1e-5)


def test_programs_are_reused_across_batches_of_one_bucket(model):
    greedy(model, PROMPTS[:3], **SETTINGS)
    before = _decode._cache_size()
    greedy(model, PROMPTS, **SETTINGS)
    greedy(model, PROMPTS[1:2], **SETTINGS)
    assert _decode._cache_size() == before


def test_bad_prompts_and_sizes_are_named(model):
    with pytest.raises(UserError, match="prompt 1 is empty; give at least one token"):
        greedy(model, [[1], []], **SETTINGS)
    with pytest.raises(UserError, match="batch_size is 0; give a whole number >= 1"):
        greedy(model, [[1]], **(SETTINGS | {"batch_size": 0}))
