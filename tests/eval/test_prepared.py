"""Prepared evaluations: every target is scored exactly once, and settings that make no sense are refused."""

import dataclasses

import numpy as np
import pytest

from dynamics.data.template import DOIT, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.benchmark_eval import letter_ids_of
from dynamics.eval.prepared import answer_letter_ids, prepare
from dynamics.eval.settings import Evaluation

from .conftest import record, record_of_format_1

SMALL = Evaluation(row_length=32, batch_tokens=64, max_length=256)


@pytest.mark.parametrize("row_shards", [1, 2, 4])
def test_packing_scores_every_answer_token_exactly_once(records, tokenizer, row_shards):
    prepared = prepare(records, tokenizer, DOIT, SMALL, row_shards=row_shards)
    seen = np.zeros(len(prepared.num_targets), int)
    for packed in prepared.packed:
        owners = packed.text_of_entry[packed.text_of_entry >= 0]
        seen[packed.texts] += np.bincount(owners, minlength=len(packed.texts))
        assert all(batch["tokens"].shape[1] % row_shards == 0 for batch in packed.batches)
        assert all(batch["trained_index"].shape[1] == row_shards for batch in packed.batches)
    np.testing.assert_array_equal(seen, prepared.num_targets)
    assert len(prepared.packed) > 1, "the records should need rows of more than one length"


def test_a_packed_answer_is_the_answer(tokenizer):
    given = [record("creative_writing", f"poem {i}", "gold " * (i + 1)) for i in range(12)]
    prepared = prepare(given, tokenizer, DOIT, SMALL, row_shards=2)
    for packed in prepared.packed:
        targets = np.concatenate([batch["trained_targets"].reshape(-1) for batch in packed.batches])
        for local, text in enumerate(packed.texts):
            answer = targets[packed.text_of_entry == local]
            whole = encode(DOIT, tokenizer, given[text].messages)
            np.testing.assert_array_equal(answer, whole.tokens[whole.trained])
            assert targets[packed.first_entry[local]] == answer[0]


def test_letters_are_read_as_answers_are_trained(tokenizer):
    ids = answer_letter_ids("ABCD", tokenizer, DOIT)
    assert ids.tolist() == [tokenizer.letter_id(letter) for letter in "ABCD"]
    assert ids.tolist() != [tokenizer.bare_piece_id(letter) for letter in "ABCD"]


def test_letters_can_be_read_as_bare_pieces(tokenizer):
    bare = letter_ids_of("bare", "ABCD", tokenizer, DOIT).tolist()
    assert bare == [tokenizer.bare_piece_id(letter) for letter in "ABCD"]
    assert letter_ids_of("answer", "ABCD", tokenizer, DOIT).tolist() != bare
    with pytest.raises(UserError, match=r"no piece '甲' without a leading space"):
        letter_ids_of("bare", "甲", tokenizer, DOIT)


@pytest.mark.shared_data
def test_the_letters_of_the_published_tokenizer_are_the_published_ids(shared_data):
    tokenizer = Tokenizer.load(shared_data / "doit/chinese_llama_plus_tokenizer.model")
    assert letter_ids_of("answer", "ABCD", tokenizer, DOIT).tolist() == [319, 350, 315, 360]
    assert letter_ids_of("bare", "ABCD", tokenizer, DOIT).tolist() == [29909, 29933, 29907, 29928]


def test_published_settings_cut_texts_and_ask_as_long_as_a_prompt_fits(tokenizer):
    long_choice = record_of_format_1("code", "which?", "gold", "iron " * 300)
    no_room = record("math", "gold " * 120, "5", answer="5")
    no_answer = record_of_format_1("code", "gold " * 300, "gold", "iron")
    given = [long_choice, no_room, no_answer]
    assert prepare(given, tokenizer, DOIT, SMALL).too_long == {0, 1, 2}
    prepared = prepare(given, tokenizer, DOIT, dataclasses.replace(SMALL, over_long="truncate"))
    assert prepared.too_long == {2}, "nothing of its answers is left"
    assert prepared.cut == {0}
    assert [index for index, _ in prepared.prompts] == [1]
    prompt = len(encode(DOIT, tokenizer, long_choice.messages[:1], generate=True))
    assert prepared.num_targets.tolist() == [3, 256 - prompt, 3]  # two pieces and the end of turn; what is left


def test_published_rules_offer_a_to_d_whatever_the_options(tokenizer):
    three = record("understanding", "Which?\nA. sky\nB. rose\nC. leaf", "C")
    six = record("reasoning", "Which?\nA. a\nB. b\nC. c\nD. d\nE. e\nF. f", "F")
    rules = dataclasses.replace(SMALL, rules="published")
    assert prepare([three], tokenizer, DOIT, SMALL).letters == ("A", "B", "C")
    assert prepare([three], tokenizer, DOIT, rules).letters == ("A", "B", "C", "D")
    assert prepare([six], tokenizer, DOIT, rules).letters == ("A", "B", "C", "D", "E", "F")


def test_an_answer_ends_at_the_tokens_of_the_published_protocol(records, tokenizer):
    names = ("<bos>", "<eos>", "<eot>", "<user>", "<assistant>", "<pad>")
    stops = {tokenizer.special_id(name) for name in names} | {tokenizer.unk_id}
    assert prepare(records, tokenizer, DOIT, SMALL).stop_ids == stops


def test_letters_that_begin_alike_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"answers '甲' and '乙' begin with the same token '▁', so logits"):
        answer_letter_ids("甲乙", tokenizer, DOIT)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("choice", "vote", r"choice is 'vote'; allowed: likelihood, generation"),
        ("ties", "lose", r"ties is 'lose'; allowed: share, correct"),
        ("rules", "mine", r"rules is 'mine'; allowed: ours, published"),
        ("over_long", "drop", r"over_long is 'drop'; allowed: zero, truncate"),
        ("batch_size", 0, r"batch_size is 0; give a whole number >= 1"),
        ("row_length", 4096, r"row_length is 4096 and max_length 256; .*lower row_length or raise max_length"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **{field: value})
