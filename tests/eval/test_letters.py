"""Letter logits: as if every prompt were alone, however prompts share their beginnings, rows and devices."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import install_import_hook

install_import_hook(["dynamics.eval.letters", "dynamics.eval.shared_prefixes"], "beartype.beartype")

from dynamics.errors import UserError  # noqa: E402
from dynamics.eval import letters  # noqa: E402
from dynamics.eval.letters import letter_logits, one_by_one, plan_waves, wave_batches  # noqa: E402
from dynamics.eval.shared_prefixes import group_by_prefix  # noqa: E402
from dynamics.model.llama import LlamaConfig, init  # noqa: E402
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for  # noqa: E402

TINY = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=32,
    attention_block=8,
)  # fmt: skip
MODEL = init(TINY, jax.random.key(0))
LETTERS = [7, 3, 60, 11]
SMALL = {"batch_tokens": 64, "row_length": 32}


def exam(seed: int, *, subjects: int, questions: int, shared: int, longest: int) -> list[np.ndarray]:
    """Prompts as an exam gives them: those of a subject begin alike, and all are of different lengths."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(0, 64, shared) for _ in range(subjects)]
    own = [[rng.integers(0, 64, rng.integers(1, longest)) for _ in range(questions)] for _ in range(subjects)]
    prompts = [np.concatenate([head, rest]) for head, texts in zip(heads, own, strict=True) for rest in texts]
    return [prompts[i].astype(np.int32) for i in rng.permutation(len(prompts))]


PROMPTS = [
    *exam(0, subjects=2, questions=7, shared=40, longest=25),
    *exam(1, subjects=5, questions=1, shared=3, longest=70),
]
ALONE = one_by_one(MODEL, PROMPTS, LETTERS)


def collected(model, prompts, **settings):
    """All logits in the order of the prompts; each prompt must come exactly once."""
    logits = np.full((len(prompts), len(LETTERS)), np.nan, np.float32)
    for places, values in letter_logits(model, prompts, LETTERS, **settings):
        assert np.isnan(logits[places]).all()
        logits[places] = values
    assert not np.isnan(logits).any()
    return logits


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("scan", [True, False])
def test_logits_are_those_of_each_prompt_alone(share, scan):
    model = MODEL if not scan else scanned(MODEL)
    np.testing.assert_allclose(collected(model, PROMPTS, share=share, **SMALL), ALONE, atol=1e-5)


def scanned(model):
    """The same parameters in a model whose layers are scanned over."""
    config = dataclasses.replace(TINY, scan_layers=True)
    return jax.tree.unflatten(jax.tree.structure(init(config, jax.random.key(0))), jax.tree.leaves(model))


def test_both_kinds_of_group_are_among_them():
    waves = plan_waves(PROMPTS, shards=1, batch_tokens=SMALL["batch_tokens"], share=True)
    assert sorted(int(wave.lengths[0]) for wave in waves) == [0, 40, 40]


@pytest.mark.parametrize("shape", [MeshShape(data=2), MeshShape(fsdp=2, tensor=2), MeshShape(data=2, sequence=2)])
def test_a_mesh_changes_nothing(shape):
    mesh = make_mesh(shape)
    model = jax.device_put(MODEL, shardings_for(MODEL, mesh))
    np.testing.assert_allclose(collected(model, PROMPTS, mesh=mesh, **SMALL), ALONE, atol=1e-5)


def test_a_pass_that_goes_on_gives_the_same_bits():
    parts = list(letter_logits(MODEL, PROMPTS, LETTERS, **SMALL))
    done = np.concatenate([places for places, _ in parts[:2]])
    rest = list(letter_logits(MODEL, PROMPTS, LETTERS, done=done.tolist(), **SMALL))
    assert len(rest) == len(parts) - 2
    for (places, values), (again, repeated) in zip(parts[2:], rest, strict=True):
        np.testing.assert_array_equal(places, again)
        np.testing.assert_array_equal(values, repeated)


def test_few_programs_serve_all_batches():
    prompts = exam(2, subjects=9, questions=40, shared=60, longest=120)
    shapes, batches, tokens = set(), 0, 0
    for wave in plan_waves(prompts, shards=1, batch_tokens=512, share=True):
        for batch in wave_batches(wave, prompts, batch_tokens=512, row_length=128):
            assert wave.prefixes is not None
            shapes.add((batch.tokens.shape, batch.index.shape, wave.prefixes.shape))
            batches += 1
            tokens += batch.tokens.size
    assert len(shapes) <= 4
    assert batches >= 36
    assert tokens <= 1.2 * sum(len(prompt) - 60 for prompt in prompts)


def test_an_empty_prompt_is_refused_and_none_give_nothing():
    with pytest.raises(UserError, match="prompt 1 is empty"):
        list(letter_logits(MODEL, [[1], []], LETTERS))
    assert list(letter_logits(MODEL, [], LETTERS)) == []


def test_bfloat16_keeps_float32_logits():
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    model = jax.tree.unflatten(jax.tree.structure(init(config, jax.random.key(0))), jax.tree.leaves(MODEL))
    logits = collected(model, PROMPTS, **SMALL)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, ALONE, atol=0.1)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12), st.integers(0, 3))
@settings(max_examples=200)
def test_groups_are_a_partition_that_costs_no_more_than_none(prompts, overhead):
    prompts = [[*prompt, 10 + number] for number, prompt in enumerate(prompts)]  # no two alike
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    groups = group_by_prefix(arrays, overhead=overhead)
    members = [int(i) for group in groups for i in group.members]
    assert sorted(members) == list(range(len(prompts)))
    cost = 0
    for group in groups:
        heads = {tuple(prompts[i][: group.prefix]) for i in group.members}
        assert len(heads) == 1
        assert all(len(prompts[i]) > group.prefix for i in group.members)
        cost += (
            group.prefix + sum(len(prompts[i]) - group.prefix for i in group.members) + overhead * (group.prefix > 0)
        )
    assert cost <= sum(map(len, prompts))


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_a_group_has_the_longest_prefix_that_pays():
    examples = ["abcdeV", "abcdeW", "abcdeX", "abcY", "abcZ", "other"]
    groups = group_by_prefix([ids(text) for text in examples], overhead=1)
    assert [(group.prefix, sorted(group.members.tolist())) for group in groups] == [
        (5, [0, 1, 2]),
        (3, [3, 4]),
        (0, [5]),
    ]
    dear = group_by_prefix([ids(text) for text in examples], overhead=4)
    assert [(group.prefix, sorted(group.members.tolist())) for group in dear] == [(3, [0, 1, 2, 3, 4]), (0, [5])]
    assert [group.prefix for group in group_by_prefix([ids(text) for text in examples], overhead=99)] == [0]


def test_a_prompt_that_begins_another_keeps_a_token_of_its_own():
    groups = group_by_prefix([ids("abcd"), ids("abc"), ids("abc")], overhead=0)
    assert [group.prefix for group in groups] == [2]


def test_the_number_of_positions_follows_the_device():
    assert letters.default_batch_tokens() == 2048
