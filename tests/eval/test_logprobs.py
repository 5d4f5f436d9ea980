"""Log-probability sums: as if every document were alone, however they are packed, batched and spread over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.data.template import Encoded
from dynamics.errors import UserError
from dynamics.eval import logprobs
from dynamics.eval.logprobs import logprob_sums, plan_documents
from dynamics.model.llama import LlamaConfig, init
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for

TINY = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32
)
MODEL = init(TINY, jax.random.key(0))
LENGTH = 32


def document(rng: np.random.Generator, size: int) -> Encoded:
    return Encoded(tokens=rng.integers(0, 64, size).astype(np.int32), trained=rng.random(size) < 0.5)


RNG = np.random.default_rng(0)
DOCUMENTS = [document(RNG, int(size)) for size in (*RNG.integers(1, LENGTH, 30), 1, LENGTH)]


@jax.jit
def _alone(tokens):
    hidden = MODEL(tokens[None], jnp.arange(LENGTH)[None], jnp.ones((1, LENGTH), jnp.int32))
    logprobs = jax.nn.log_softmax((hidden[0] @ MODEL.head).astype(jnp.float32))
    return jnp.take_along_axis(logprobs[:-1], tokens[1:, None], axis=1)[:, 0]


def alone(document: Encoded) -> float:
    """The plain reading: the document in a row of its own, every logit made. Padding behind it is seen by nobody."""
    padded = np.pad(document.tokens, (0, LENGTH - len(document)))
    each = np.asarray(_alone(padded), np.float64)[: len(document) - 1]
    return float(each[document.trained[1:]].sum())


EXPECTED = np.array([alone(one) for one in DOCUMENTS])


def sums(documents, *, rows, length=LENGTH, mesh=None, first_batch=0):
    model = MODEL if mesh is None else jax.device_put(MODEL, shardings_for(MODEL, mesh))
    packing = plan_documents(documents, rows=rows, length=length)
    parts = list(logprob_sums(model, documents, packing, first_batch=first_batch, mesh=mesh))
    assert [place for places, _ in parts for place in places] == list(
        range(packing.documents(first_batch).start, len(documents))
    )
    return np.concatenate([values for _, values in parts])


# Sums of at most 31 log-probabilities of about 4 nats each, each good to about 1e-6 in float32.
@pytest.mark.parametrize(("rows", "length"), [(1, 32), (2, 64), (8, 128)])
def test_packed_equals_each_document_alone(rows, length):
    np.testing.assert_allclose(sums(DOCUMENTS, rows=rows, length=length), EXPECTED, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_mesh_gives_the_same_sums(shape):
    np.testing.assert_allclose(sums(DOCUMENTS, rows=8, mesh=make_mesh(shape)), EXPECTED, rtol=1e-5, atol=1e-5)


@settings(max_examples=5)
@given(st.permutations(range(len(DOCUMENTS))))
def test_the_order_of_the_documents_changes_no_sum(order):
    shuffled = sums([DOCUMENTS[place] for place in order], rows=4)
    np.testing.assert_allclose(shuffled, EXPECTED[list(order)], rtol=1e-5, atol=1e-5)


def test_a_pass_that_starts_later_ends_with_the_same_bits():
    whole = sums(DOCUMENTS, rows=2)
    rest = sums(DOCUMENTS, rows=2, first_batch=3)
    np.testing.assert_array_equal(rest, whole[-len(rest) :])


def test_a_document_of_one_token_or_without_a_scored_one_sums_to_zero():
    silent = Encoded(tokens=np.arange(5, dtype=np.int32), trained=np.zeros(5, np.bool_))
    one = Encoded(tokens=np.array([7], np.int32), trained=np.ones(1, np.bool_))
    np.testing.assert_array_equal(sums([silent, one], rows=1), [0.0, 0.0])


def test_a_whole_pass_is_one_program():
    program: Any = logprobs._score
    program.clear_cache()
    sums(DOCUMENTS, rows=2)
    assert program._cache_size() == 1


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="rows have 16"):
        plan_documents(DOCUMENTS, rows=1, length=16)
