"""Laws of the tokenizer: same bytes twice, nothing lost, nothing forged."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.data.tokenizer import SPECIALS, Tokenizer, train_tokenizer
from dynamics.errors import UserError

TEXTS = [
    "def area(width, height):\n    return width * height\n",
    "你好，世界！今天的天气怎么样？一二三四五六七八九十",
    "The quick brown fox jumps over the lazy dog; 12 + 34 = 46.",
    "Answer: A\nAnd the answer is B.",
] * 20
TOKENIZER = train_tokenizer(TEXTS, vocab_size=512)
# SentencePiece writes spaces as U+2581, so that one character comes back as a space.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"), max_size=40)


def test_training_twice_gives_the_same_bytes():
    again = train_tokenizer(iter(TEXTS), vocab_size=512)
    assert again.model == TOKENIZER.model
    assert again.fingerprint == TOKENIZER.fingerprint


def test_other_texts_or_sizes_give_another_fingerprint():
    assert train_tokenizer([*TEXTS, "zebra " * 50], vocab_size=512).fingerprint != TOKENIZER.fingerprint
    assert train_tokenizer(TEXTS, vocab_size=511).fingerprint != TOKENIZER.fingerprint


def test_vocabulary_size_counts_every_id():
    assert TOKENIZER.vocab_size == 512
    assert [TOKENIZER.special_id(name) for name in SPECIALS] == [508, 509, 510, 511]
    assert (TOKENIZER.pad_id, TOKENIZER.user_id, TOKENIZER.assistant_id, TOKENIZER.eot_id) == (508, 509, 510, 511)
    assert TOKENIZER.padded_vocab_size(1) == 512
    assert TOKENIZER.padded_vocab_size(128) == 512
    assert TOKENIZER.padded_vocab_size(100) == 600


@given(text=TEXT)
def test_decoding_gives_back_the_text(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("text", ["    indented", "a\n\n  b\tc  ", "１２（全角）①", "é 𝄞", "", " ", "\n"])
def test_no_normalization_changes_a_text(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(parts=st.lists(st.sampled_from([*SPECIALS, "<s>", "</s>", "<unk>", " ", "a", "你"]), max_size=8))
def test_text_never_becomes_a_special_token(parts):
    special = {TOKENIZER.special_id(name) for name in (*SPECIALS, "<bos>", "<eos>")}
    assert not special & set(TOKENIZER.encode("".join(parts)))
    assert not special & set(TOKENIZER.encode("".join(parts), starts_word=False))


@given(text=TEXT)
def test_continued_text_has_no_space_of_its_own(text):
    ids = TOKENIZER.encode("\n") + TOKENIZER.encode(text, starts_word=False)
    assert TOKENIZER.decode(ids) == "\n" + text


def test_every_choice_letter_is_one_id_of_its_own_even_if_unseen():
    ids = [TOKENIZER.letter_id(letter) for letter in "ABCDEF"]
    assert len(set(ids)) == 6
    assert [TOKENIZER.piece(i) for i in ids] == [f"▁{letter}" for letter in "ABCDEF"]
    assert not set(ids) & {TOKENIZER.bare_piece_id(letter) for letter in "ABCDEF"}


def test_decoding_leaves_out_specials_and_padding_of_the_head():
    ids = [TOKENIZER.user_id, *TOKENIZER.encode("fox"), TOKENIZER.eot_id, 600]
    assert TOKENIZER.decode(ids) == "fox"


def test_a_saved_tokenizer_loads_equal(tmp_path):
    extra = Tokenizer.from_bytes(TOKENIZER.model, specials=(*SPECIALS, "<|im_start|>"))
    extra.save(tmp_path / "with space.model")
    loaded = Tokenizer.load(tmp_path / "with space.model")
    assert loaded == extra
    assert loaded.fingerprint == extra.fingerprint != TOKENIZER.fingerprint
    assert loaded.vocab_size == 513


def test_a_rare_character_has_a_piece_where_there_is_room():
    texts = [*TEXTS * 200, "罕"]
    assert len(train_tokenizer(texts, vocab_size=512).encode("罕", starts_word=False)) == 1
    many = "".join(chr(0x4E00 + index) for index in range(100))
    assert len(train_tokenizer([*texts, many], vocab_size=512).encode("罕", starts_word=False)) == 3


def test_text_longer_than_a_line_counts_in_full():
    tokenizer = train_tokenizer([" ".join(TEXTS) + " ab" * 20_000 + " qqq" * 9_000], vocab_size=440)
    assert len(tokenizer.encode("qqq")) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_tokenizer(TEXTS, vocab_size=100), "100 ids is too small.* take 364; ask for more"),
        (
            lambda: train_tokenizer(TEXTS, vocab_size=100_000),
            "100000 ids could not be trained; these texts give at most .* set vocab_size to that or less",
        ),
        (lambda: train_tokenizer([], vocab_size=512), "no text to train a tokenizer on"),
        (lambda: Tokenizer.load("no/such.model"), "no tokenizer file no/such.model; give the path"),
        (lambda: Tokenizer.from_bytes(b""), "holds no pieces"),
        (lambda: Tokenizer.from_bytes(b"hello, world"), "not a SentencePiece model"),
        (lambda: Tokenizer.from_bytes(TOKENIZER.model[:3000]), "not a SentencePiece model|holds no pieces"),
        (lambda: TOKENIZER.special_id("<|im_end|>"), "no special token '<|im_end|>'; it has .*<eot>"),
        (lambda: TOKENIZER.letter_id("AB cd"), "so its first id tells no letter apart"),
        (lambda: TOKENIZER.bare_piece_id("狗"), "no piece '狗' without a leading space"),
        (lambda: TOKENIZER.padded_vocab_size(0), "multiple of 0"),
        (lambda: Tokenizer.from_bytes(TOKENIZER.model, specials=(*SPECIALS, "▁A")), "text could forge"),
    ],
)
def test_errors_say_what_was_given_and_what_to_do(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.shared_data
def test_ids_of_the_tokenizer_that_doit_used(shared_data: Path):
    tokenizer = Tokenizer.load(shared_data / "doit" / "chinese_llama_plus_tokenizer.model")
    assert tokenizer.vocab_size == 49_957
    assert [tokenizer.special_id(name) for name in SPECIALS] == [49_953, 49_954, 49_955, 49_956]
    assert tokenizer.encode("A") == [319]
    assert [tokenizer.letter_id(letter) for letter in "ABCD"] == [319, 350, 315, 360]
    assert [tokenizer.bare_piece_id(letter) for letter in "ABCD"] == [29909, 29933, 29907, 29928]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.padded_vocab_size(256) == 50_176
    assert tokenizer.decode(tokenizer.encode("今天天气怎么样？ fine\n")) == "今天天气怎么样？ fine\n"


@pytest.mark.shared_data
def test_ids_of_the_original_llama_tokenizer(shared_data: Path):
    tokenizer = Tokenizer.load(shared_data / "llama_tokenizer" / "tokenizer.model")
    assert tokenizer.vocab_size == 32_004
    assert tokenizer.letter_id("A") == 319
    assert tokenizer.bare_piece_id("A") == 29909
