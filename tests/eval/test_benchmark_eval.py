"""Benchmark scores: the arithmetic by hand, and prompts, letters and answers on a small model."""

import json
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data.template import CHATML, DOIT, VICUNA, encode
from dynamics.data.tokenizer import SPECIALS, Tokenizer
from dynamics.errors import UserError
from dynamics.eval.benchmark_eval import (
    answers,
    chosen,
    letter_ids_of,
    prepare_benchmark,
    score_benchmarks,
    standard_error,
    summarize,
)
from dynamics.eval.benchmarks import Benchmark, Contents, Question
from dynamics.eval.letters import one_by_one
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for
from dynamics.record import Turn
from tests.data import small_tokenizers
from tests.eval.conftest import Unigram


@dataclass(frozen=True, kw_only=True)
class Colors(Question):
    text: str

    @property
    def max_shots(self):
        return 2

    def turns(self, shots):
        shown = [Turn(role=r, content=c) for r, c in (("user", "gold or iron? A. iron B. gold"), ("assistant", "B"))]
        return (*(shown * min(shots, 2)), Turn(role="user", content=self.text))

    def fitted(self, shots, length_of, max_length):
        for count in range(min(shots, 2), -1, -1):
            if length_of(self.turns(count)) <= max_length:
                return self.turns(count)
        return None


@dataclass(frozen=True, kw_only=True)
class ColorTest(Benchmark):
    data_dir: str = "nowhere"

    @property
    def name(self):
        return "colors"

    def read(self):
        four, six = "ABCD", "ABCDEF"
        sky = "Which is red? A. sky B. rose C. leaf D. sand"
        rows = [
            ("red", four, "B", sky),
            ("red", four, "A", "red? A. rose B. sky C. leaf D. sand"),
            ("red", four, "B", sky + " true or false" * 12),
            ("coal", six, "E", "Which is red? A. sky B. sky C. leaf D. sand E. rose F. snow"),
            ("coal", four, "B", "yes or no?"),
        ]
        questions = tuple(
            Colors(task=task, id=f"{task}/{i}", options=tuple(options), gold=gold, text=text)
            for i, (task, options, gold, text) in enumerate(rows)
        )
        return Contents(questions=questions, left_out={"several_golds": {"red": 3}})


def test_means_and_errors_by_hand():
    found = summarize({"a": ("1100", 0.25), "b": ("10", 0.5)})
    assert found["num_items"] == 6
    assert found["macro"] == pytest.approx(0.5)
    assert found["micro"] == pytest.approx(3 / 6)
    assert found["chance_macro"] == pytest.approx(0.375)
    assert found["chance_micro"] == pytest.approx((4 * 0.25 + 2 * 0.5) / 6)
    # Variances of the two means: 0.5 * 0.5 / 3 and 0.5 * 0.5 / 1.
    assert found["macro_se"] == pytest.approx(math.sqrt(1 / 12 + 1 / 4) / 2)
    assert found["micro_se"] == pytest.approx(math.sqrt((4 / 6) ** 2 / 12 + (2 / 6) ** 2 / 4))


def test_macro_and_micro_differ_where_tasks_differ_in_size():
    found = summarize({"large": ("1" * 9 + "0", 0.25), "small": ("00", 0.25)})
    assert found["macro"] == pytest.approx(0.45)
    assert found["micro"] == pytest.approx(9 / 12)


def test_a_task_of_one_item_has_no_error_and_no_tasks_have_no_mean():
    assert summarize({"a": ("1", 0.25), "b": ("10", 0.25)})["macro_se"] is None
    assert standard_error("1") is None
    with pytest.raises(UserError, match="no tasks"):
        summarize({})


def test_the_standard_error_is_that_of_a_sample():
    assert standard_error("110") == pytest.approx(np.std([1, 1, 0], ddof=1) / np.sqrt(3))


def test_an_answer_is_one_of_the_questions_own_options(tokenizer):
    """F has the highest logit of all, and only questions that offer it are answered with it."""
    benchmark = ColorTest(shots=(0,), letters="answer")
    (test,) = prepare_benchmark(benchmark, tokenizer=tokenizer, template=DOIT)
    assert test.letters == tuple("ABCDEF")
    weights = dict(zip(test.letter_ids.tolist(), (0, 5, 1, 2, 3, 9), strict=True))
    model = Unigram(jnp.asarray([float(weights.get(i, 0)) for i in range(tokenizer.vocab_size)]))
    (entry,) = score_benchmarks(model, [test], tokenizer=tokenizer, template=DOIT)
    assert entry["tasks"]["red"]["correct"] == "101"  # B of four
    assert entry["tasks"]["coal"]["correct"] == "01"  # F of six, B of four
    assert entry["tasks"]["coal"]["chance"] == pytest.approx((1 / 6 + 1 / 4) / 2)
    assert entry["macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert entry["micro"] == pytest.approx(3 / 5)
    assert entry["counts"]["ties"] == 0
    assert json.loads(json.dumps(entry)) == entry


def test_what_does_not_fit_is_wrong_and_counted(tokenizer):
    lengths = {}
    for shots in (0, 2):
        for question in ColorTest().questions():
            lengths[question.id, shots] = len(encode(DOIT, tokenizer, question.turns(shots), generate=True))
    limit = lengths["coal/3", 0]  # below two examples, and below the long question
    assert limit < lengths["red/2", 0]
    benchmark = ColorTest(shots=(0, 2), max_length=limit, letters="answer")
    bare, shown = prepare_benchmark(benchmark, tokenizer=tokenizer, template=DOIT)
    assert bare.counts["too_long"] == 1
    assert bare.counts["shots_dropped"] == 0
    assert bare.counts["left_out"] == bare.counts["several_golds"] == 3
    assert shown.counts["too_long"] == 1
    assert shown.counts["shots_dropped"] == sum(
        lengths[id, 2] > limit >= lengths[id, 0] for id, shots in lengths if shots == 0
    )
    model = Unigram(jnp.zeros(tokenizer.vocab_size).at[bare.letter_ids[1]].set(1.0))
    entry, _ = score_benchmarks(model, [benchmark], tokenizer=tokenizer, template=DOIT)
    assert entry["tasks"]["red"]["correct"] == "100"
    assert entry["num_items"] == 5


@pytest.mark.parametrize("shape", [None, MeshShape(data=2, tensor=2)])
def test_answers_are_those_of_each_prompt_alone(model, tokenizer, shape):
    benchmark = ColorTest(shots=(0, 2), letters="answer")
    mesh = None if shape is None else make_mesh(shape)
    placed = model if mesh is None else jax.device_put(model, shardings_for(model, mesh))
    for test in prepare_benchmark(benchmark, tokenizer=tokenizer, template=DOIT):
        alone = one_by_one(model, test.prompts, test.letter_ids.tolist())
        found = dict(one for batch in answers(placed, test, mesh=mesh) for one in batch)
        for place, logits in zip(test.asked, alone, strict=True):
            options = len(test.questions[place].options)
            np.testing.assert_allclose(found[place].logits, logits[:options], atol=1e-5)
            assert found[place].option == "ABCDEF"[int(np.argmax(logits[:options]))]


def test_progress_counts_items_of_all_tests(model, tokenizer):
    told = []
    benchmark = ColorTest(shots=(0, 2), letters="answer")
    score_benchmarks(model, [benchmark], tokenizer=tokenizer, template=DOIT, on_progress=lambda *at: told.append(at))
    assert told[-1] == (10, 10)
    assert told == sorted(told)


def test_equal_logits_are_the_first_option_and_counted(tokenizer):
    question = ColorTest().questions()[0]
    answer = chosen(question, np.asarray([1, 2, 2, 0], np.float32))
    assert (answer.option, answer.tied, answer.correct) == ("B", True, True)
    with pytest.raises(UserError, match=r"red/0.*nan"):
        chosen(question, np.asarray([1, np.nan, 2, 0], np.float32))


def test_bare_letters_and_letters_of_an_answer(tokenizer):
    """SentencePiece has two pieces for a letter; where it lacks the bare ones, the message says what to do."""
    letters = ("A", "B")
    pieces = [tokenizer.piece(int(one)) for one in letter_ids_of("answer", letters, tokenizer, VICUNA)]
    assert pieces == ["▁A", "▁B"]
    bare = [tokenizer.piece(int(one)) for one in letter_ids_of("bare", letters, tokenizer, VICUNA)]
    assert bare == ["A", "B"]
    with pytest.raises(UserError, match="--letters answer"):
        letter_ids_of("bare", ("Ω",), tokenizer, VICUNA)


def test_a_byte_level_tokenizer_has_one_piece_after_a_marker_and_two_on_a_line():
    own = byte_level_with_spaced_letters()
    for kind, template, expected in (
        ("bare", CHATML, ["A", "B"]),
        ("answer", CHATML, ["A", "B"]),  # after "assistant" and a newline
        ("bare", VICUNA, ["A", "B"]),
        ("answer", VICUNA, ["ĠA", "ĠB"]),  # after "ASSISTANT:"
    ):
        assert [own.piece(int(one)) for one in letter_ids_of(kind, ("A", "B"), own, template)] == expected


def byte_level_with_spaced_letters():
    """A byte-level tokenizer that joins a space and a capital, as those of real models do."""
    document = json.loads(small_tokenizers.files()["bytes"])
    vocabulary = document["model"]["vocab"]
    pieces = [f"Ġ{letter}" for letter in "AB" if f"Ġ{letter}" not in vocabulary]
    top = 1 + max(*vocabulary.values(), *(token["id"] for token in document["added_tokens"]), 0)
    vocabulary.update({piece: top + place for place, piece in enumerate(pieces)})
    first = document["model"]["merges"][0]
    merges = [["Ġ", piece[1:]] if isinstance(first, list) else f"Ġ {piece[1:]}" for piece in pieces]
    document["model"]["merges"] += merges
    return Tokenizer.from_bytes(json.dumps(document).encode(), specials=(*SPECIALS, "<|im_start|>", "<|im_end|>"))
