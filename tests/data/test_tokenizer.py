"""Laws of tokenizers, the same for every kind: nothing lost, nothing forged; and deterministic training."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.small_tokenizers import ENDS, KINDS, TEXTS, small
from dynamics.data.tokenizer import SPECIALS, Tokenizer, train_tokenizer
from dynamics.errors import UserError

TOKENIZER = train_tokenizer(TEXTS, vocab_size=512)
MEMBERS = [small(kind, SPECIALS) for kind in KINDS]
every_kind = pytest.mark.parametrize("tokenizer", MEMBERS, ids=KINDS)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def spelled(tokenizer: Tokenizer, text: str) -> str:
    """Pieces that begin words are written with U+2581, so that one character comes back as a space."""
    return text.replace("\u2581", " ") if tokenizer.leading_space else text


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


# --- laws of every kind


@every_kind
@given(text=TEXT)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == spelled(tokenizer, text)


@every_kind
@pytest.mark.parametrize("text", ["    indented", "a\n\n  b\tc  ", "１２（全角）①", "é 𝄞", "", " ", "\r\n\u3000x"])
def test_no_normalization_changes_a_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


TYPED = [*SPECIALS, *ENDS, "<s>", "</s>", "<unk>", "<", "s>", " ", "a", "你"]


@every_kind
@given(parts=st.lists(st.sampled_from(TYPED), max_size=8))
def test_text_never_becomes_a_special_token(tokenizer, parts):
    special = {tokenizer.special_id(name) for name in (*SPECIALS, "<bos>", "<eos>")}
    assert not special & set(tokenizer.encode("".join(parts)))
    assert not special & set(tokenizer.encode("".join(parts), starts_word=False))
    assert tokenizer.decode(tokenizer.encode("".join(parts))) == "".join(parts)


@every_kind
@given(text=TEXT)
def test_continued_text_has_no_space_of_its_own(tokenizer, text):
    ids = tokenizer.encode("\n") + tokenizer.encode(text, starts_word=False)
    assert tokenizer.decode(ids) == "\n" + spelled(tokenizer, text)


@every_kind
def test_a_leading_space_is_written_exactly_where_it_is_said(tokenizer):
    alike = tokenizer.encode("fox") == tokenizer.encode("fox", starts_word=False)
    assert tokenizer.leading_space is not alike


@every_kind
def test_every_choice_letter_is_one_id_of_its_own(tokenizer):
    ids = [tokenizer.letter_id(letter) for letter in "ABCDEF"]
    bare = [tokenizer.bare_piece_id(letter) for letter in "ABCDEF"]
    assert len(set(ids)) == len(set(bare)) == 6
    assert (ids == bare) is not tokenizer.leading_space


@every_kind
def test_decoding_leaves_out_specials_and_padding_of_the_head(tokenizer):
    fox = tokenizer.encode("fox")
    ids = [tokenizer.bos_id, tokenizer.user_id, *fox, tokenizer.eot_id, tokenizer.eos_id, tokenizer.vocab_size, 10**6]
    assert tokenizer.decode(ids) == "fox"


@every_kind
def test_specials_come_after_the_published_ids(tokenizer, tmp_path):
    plain = small(KINDS[MEMBERS.index(tokenizer)], ())
    more = Tokenizer.from_bytes(tokenizer.model, specials=(*SPECIALS, "<|tool|>"))
    assert more.vocab_size == tokenizer.vocab_size + 1
    assert more.special_id("<|tool|>") == tokenizer.vocab_size
    assert more.specials == {**tokenizer.specials, "<|tool|>": tokenizer.vocab_size}
    assert [more.piece(id) for id in range(plain.vocab_size)] == [plain.piece(id) for id in range(plain.vocab_size)]
    assert more.piece(tokenizer.vocab_size) == "<|tool|>"
    assert more.fingerprint != tokenizer.fingerprint
    assert more.encode("the fox") == tokenizer.encode("the fox")


@every_kind
def test_a_saved_tokenizer_loads_equal(tokenizer, tmp_path):
    path = tmp_path / "with space.anything"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer == Tokenizer.from_bytes(tokenizer.model)
    for name in ("fingerprint", "vocab_size", "specials", "bos_id", "eos_id", "unk_id", "leading_space"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@every_kind
def test_a_folder_is_read_by_the_file_in_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path / ("tokenizer.model" if tokenizer is MEMBERS[0] else "tokenizer.json"))
    assert Tokenizer.load(tmp_path) == tokenizer


@every_kind
def test_special_names_of_ordinary_pieces_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"ordinary (piece|token) 'q'.* text could forge"):
        Tokenizer.from_bytes(tokenizer.model, specials=(*SPECIALS, "q"))


# --- SentencePiece


def test_every_choice_letter_is_one_id_of_its_own_even_if_unseen():
    ids = [TOKENIZER.letter_id(letter) for letter in "ABCDEF"]
    assert len(set(ids)) == 6
    assert [TOKENIZER.piece(i) for i in ids] == [f"▁{letter}" for letter in "ABCDEF"]
    assert not set(ids) & {TOKENIZER.bare_piece_id(letter) for letter in "ABCDEF"}


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
        (
            lambda: Tokenizer.load("tests/train"),
            "folder tests/train holds no tokenizer; it needs a file",
        ),
    ],
)
def test_errors_say_what_was_given_and_what_to_do(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.shared_data
def test_ids_of_the_tokenizer_that_doit_used(shared_data: Path):
    tokenizer = Tokenizer.load(shared_data / "doit" / "chinese_llama_plus_tokenizer.model")
    assert tokenizer.vocab_size == 49_957
    assert tokenizer.fingerprint == "dcb5b953b6bfc1f4"  # runs and caches are named by it
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
