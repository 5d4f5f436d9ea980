"""What is special to a tokenizer.json: who ends a text, what it must hold, and the ids of a converted SentencePiece."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.small_tokenizers import converted, files, small
from dynamics.data.tokenizer import SPECIALS, Tokenizer
from dynamics.errors import UserError

BYTES, PLAIN = "bytes", ()


def document(kind: str = BYTES) -> dict:
    return json.loads(files()[kind])


def made(document: dict, specials=SPECIALS) -> Tokenizer:
    return Tokenizer.from_bytes(json.dumps(document).encode(), specials=specials)


def unmarked() -> dict:
    """As published: no note of who begins and ends a text."""
    found = document()
    for token in found["added_tokens"]:
        token.pop("roles", None)
    return found


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_a_converted_sentencepiece_model_gives_the_same_ids(text):
    original, other = small("sentencepiece", SPECIALS), small("converted", SPECIALS)
    assert other.encode(text) == original.encode(text)
    assert other.encode(text, starts_word=False) == original.encode(text, starts_word=False)
    assert [other.letter_id(letter) for letter in "AB"] == [original.letter_id(letter) for letter in "AB"]


def test_equal_tokenizers_in_other_spellings_have_one_fingerprint():
    found = document("converted")
    pairs = {**found, "model": {**found["model"], "merges": [m.split(" ") for m in found["model"]["merges"]]}}
    cut = {**found, "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
    turned = dict(reversed(found.items()))
    for other in (pairs, cut, turned):
        assert made(other) == small("converted", SPECIALS)
        assert made(other).fingerprint == small("converted", SPECIALS).fingerprint


def test_any_other_piece_merge_or_rule_has_another_fingerprint():
    found = document()
    model = found["model"]
    others = [
        {**found, "model": {**model, "merges": model["merges"][:-1]}},
        {**found, "model": {**model, "vocab": {**model["vocab"], "zebra": len(model["vocab"])}}},
        {**found, "pre_tokenizer": found["pre_tokenizer"]["pretokenizers"][1]},
    ]
    prints = {made(other).fingerprint for other in (found, *others)}
    assert len(prints) == 1 + len(others)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}}, (1, 2)),
        ({"tokenizer_config.json": {"bos_token": None, "eos_token": "<|im_end|>"}}, (None, 2)),
        ({"special_tokens_map.json": {"bos_token": "<|im_end|>", "eos_token": "<|im_start|>"}}, (2, 1)),
        ({"generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, (1, 2)),
        (
            {"config.json": {"bos_token_id": 1, "eos_token_id": 1}, "generation_config.json": {"eos_token_id": 2}},
            (1, 2),
        ),
        ({}, (None, 0)),  # '<|endoftext|>', by its usual name
    ],
)
def test_begin_and_end_of_text_come_from_the_files_beside(tmp_path, beside, expected):
    (tmp_path / "tokenizer.json").write_text(json.dumps(unmarked()))
    for name, content in beside.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = Tokenizer.load(tmp_path)
    assert (found.bos_id, found.eos_id) == expected
    assert Tokenizer.load(tmp_path / "tokenizer.json") == found
    found.save(tmp_path / "alone.json")
    assert Tokenizer.load(tmp_path / "alone.json") == found


def test_an_end_of_text_cannot_be_typed_even_where_the_file_has_it_as_an_ordinary_token(tmp_path):
    found = unmarked()
    found["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == 2
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.decode([2]) == ""


def test_merges_that_spell_a_special_token_are_left_out():
    found = unmarked()
    model, size = found["model"], len(found["model"]["vocab"])
    found["model"] = {**model, "vocab": {**model["vocab"], "<|": size}, "merges": [*model["merges"], ["<", "|"]]}
    assert made(found, PLAIN).encode("<|x")[0] == size
    found["added_tokens"].append({**found["added_tokens"][0], "id": size, "content": "<|"})
    assert size not in made(found, PLAIN).encode("<|x")


def test_no_dropout_and_no_truncation_touch_a_text():
    found = document()
    found["model"]["dropout"] = 0.9
    found["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    assert made(found).encode("the quick brown fox") == small(BYTES, SPECIALS).encode("the quick brown fox")


def changed_model(**changes) -> dict:
    found = document()
    return {**found, "model": {**found["model"], **changes}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tokenizer.from_bytes(files()[BYTES][:500]), "500 bytes are not a whole tokenizer.json"),
        (lambda: Tokenizer.from_bytes(b'{"a": 1}'), "no model with a vocab, so it is not a tokenizer.json"),
        (lambda: made(changed_model(type="Unigram")), "holds a model of type 'Unigram'; BPE is what LLaMA"),
        (lambda: made({**document(), "pre_tokenizer": None}), "neither byte-level .* nor has it byte_fallback"),
        (lambda: made(changed_model(merges=[["zz", "yy"]])), "tokenizers .* cannot read this tokenizer.json"),
        (lambda: made(changed_model(vocab={**document()["model"]["vocab"], "zebra": 9000})), "not consecutive"),
        (lambda: small(BYTES, SPECIALS).special_id("<|tool|>"), r"no special token '<\|tool\|>'; it has .*<bos>"),
        (lambda: small(BYTES, SPECIALS).letter_id("AB cd"), "so its first id tells no letter apart"),
        (lambda: small(BYTES, SPECIALS).bare_piece_id("狗"), "no piece '狗' without a leading space"),
    ],
)
def test_errors_say_what_was_given_and_what_to_do(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_neighbor_that_names_a_token_the_file_lacks_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(files()[BYTES])
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(UserError, match=r"give bos as '<s>', which it does not hold; correct tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.shared_data
def test_llamas_tokenizer_converted_gives_the_ids_of_the_original(shared_data: Path):
    file = shared_data / "llama_tokenizer" / "tokenizer.model"
    original = Tokenizer.load(file)
    other = made(converted(file.read_bytes()))
    assert (other.vocab_size, other.bos_id, other.eos_id, other.unk_id) == (32_004, 1, 2, 0)
    assert other.letter_id("A") == 319
    assert other.bare_piece_id("A") == 29909
    records = json.loads((shared_data / "sft_dpo_demo" / "alpaca_en_demo.json").read_text())
    chinese = json.loads((shared_data / "sft_dpo_demo" / "alpaca_zh_demo.json").read_text())
    for record in (*records[:100], *chinese[:100]):
        text = record["instruction"] + "\n\n" + record["output"]
        assert other.encode(text) == original.encode(text)
        assert other.decode(other.encode(text)) == text
