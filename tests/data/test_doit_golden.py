"""Golden tokens of DoIT's protocol: computed here from SentencePiece alone, compared with what is trained on."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dynamics.ability import item_of
from dynamics.data.packing import apply_length_policy
from dynamics.data.template import DOIT, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.record import Record, Turn, parse_record

pytestmark = pytest.mark.shared_data

PIECES = 49_953  # of the published model file
WORD_LETTERS, BARE_LETTERS = [319, 350, 315, 360], [29909, 29933, 29907, 29928]


@pytest.fixture(scope="module")
def model_file(shared_data: Path) -> Path:
    return shared_data / "doit" / "chinese_llama_plus_tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> Tokenizer:
    return Tokenizer.load(model_file)


@pytest.fixture(scope="module")
def pieces(model_file: Path):
    """The published model as SentencePiece itself reads it, without any special token of ours."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model_file))


def by_hand(pieces, turns: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """(ids, trained) as the paper's protocol says: the role, the stripped text by itself, the end of the turn."""
    roles = {"user": tokenizer.special_id("<user>"), "assistant": tokenizer.special_id("<assistant>")}
    ids: list[int] = []
    trained: list[bool] = []
    for role, text in turns:
        content = [*pieces.encode(text.strip()), tokenizer.special_id("<eot>")]
        ids += [roles[role], *content]
        trained += [False, *[role == "assistant"] * len(content)]
    return ids, trained


def spoken(turns: Sequence[tuple[str, str]]) -> list[Turn]:
    return [Turn(role=role, content=content) for role, content in turns]


def test_the_published_file_and_the_four_that_are_added(pieces, tokenizer):
    assert pieces.get_piece_size() == PIECES
    assert tokenizer.vocab_size == 49_957
    added = [tokenizer.special_id(name) for name in ("<pad>", "<user>", "<assistant>", "<eot>")]
    assert sorted(added) == [49_953, 49_954, 49_955, 49_956]
    assert [tokenizer.padded_vocab_size(multiple) for multiple in (1, 64, 128)] == [49_957, 49_984, 50_048]
    sample = [*range(0, PIECES, 997), PIECES - 1]
    assert [tokenizer.piece(id) for id in sample] == [pieces.id_to_piece(id) for id in sample]


def test_a_letter_has_one_id_that_begins_a_text_and_one_within(pieces, tokenizer):
    assert [pieces.encode(letter) for letter in "ABCD"] == [[id] for id in WORD_LETTERS]
    assert [pieces.piece_to_id(letter) for letter in "ABCD"] == BARE_LETTERS
    assert [pieces.piece_to_id(f"▁{letter}") for letter in "ABCD"] == WORD_LETTERS
    # The bare piece is what follows "答案：" in running text; as an answer of its own a letter is the other one.
    assert pieces.encode("答案：A") == [29871, 32940, 30383, 29909]
    encoded = encode(DOIT, tokenizer, spoken([("user", "答案："), ("assistant", "A")]))
    assert encoded.tokens.tolist()[-3:] == [tokenizer.assistant_id, 319, tokenizer.eot_id]


TWO_TURNS = [
    ("user", "  下面哪个是鱼类？\nA. 鲸\nB. 鲨 "),
    ("assistant", "B\n"),
    ("user", "Sure?"),
    ("assistant", "是的，答案：B"),
]
# user, the question, eot, assistant, ▁B, eot; the same for the second question.
TWO_TURNS_IDS = [
    49954, 29871, 33109, 33683, 30392, 41779, 30882, 13, 29909, 29889, 29871, 43158, 13, 29933, 29889, 29871, 44818,
    49956, 49955, 350, 49956, 49954, 18585, 29973, 49956, 49955, 29871, 30392, 30210, 30214, 32940, 30383, 29933, 49956,
]  # fmt: skip


def test_a_conversation_of_two_turns_to_the_id(pieces, tokenizer):
    encoded = encode(DOIT, tokenizer, spoken(TWO_TURNS))
    ids, trained = by_hand(pieces, TWO_TURNS, tokenizer)
    assert encoded.tokens.tolist() == ids == TWO_TURNS_IDS
    assert encoded.trained.tolist() == trained


def test_the_mask_turns_at_the_assistants_words_and_after_their_end(tokenizer):
    encoded = encode(DOIT, tokenizer, spoken(TWO_TURNS))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.trained.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    tokens = encoded.tokens.tolist()
    assert len(starts) == 2
    assert [tokens[start - 1] for start in starts] == [tokenizer.assistant_id] * 2
    assert [tokens[end - 1] for end in ends] == [tokenizer.eot_id] * 2
    assert encoded.num_trained == 2 + 8


def test_the_prompt_of_an_item_is_the_conversation_up_to_the_answer(pieces, tokenizer):
    encoded = encode(DOIT, tokenizer, spoken(TWO_TURNS[:3]), generate=True)
    ids, _ = by_hand(pieces, TWO_TURNS[:3], tokenizer)
    assert encoded.tokens.tolist() == [*ids, tokenizer.assistant_id]
    whole = encode(DOIT, tokenizer, spoken(TWO_TURNS))
    assert whole.tokens[: len(encoded)].tolist() == encoded.tokens.tolist()


def test_of_a_choice_its_own_tokens_and_the_end_are_scored(pieces, tokenizer):
    record = parse_record(
        {
            "messages": [{"role": "user", "content": "写一首诗"}, {"role": "assistant", "content": "春风"}],
            "type": "creative_writing",
            "question_format": 1,
            "choices": ["春风", "秋雨 绵绵", "def f(x):\n    return x"],
        },
        where="here",
    )
    item = item_of(record)
    for choice in item.options:
        encoded = encode(DOIT, tokenizer, [*item.prompt, Turn(role="assistant", content=choice)])
        scored = encoded.tokens[encoded.trained].tolist()
        assert scored == [*pieces.encode(choice), tokenizer.eot_id]


def conversations(folder: Path) -> list[list[tuple[str, str]]]:
    """Real ones: 150 single ones in Chinese, 40 in English, and all of several turns among 600 more."""
    found: list[Record] = []
    for name, count in (("alpaca_zh_demo", 150), ("alpaca_en_demo", 40)):
        rows = json.loads((folder / "sft_dpo_demo" / f"{name}.json").read_text(encoding="utf-8"))[:count]
        found += [parse_record(row, where=name, ability="any") for row in rows]
    turns = [[(turn.role, turn.content) for turn in record.messages] for record in found]
    speakers = {"human": "user", "gpt": "assistant"}
    for name in ("dpo_zh_demo", "dpo_en_demo"):
        for row in json.loads((folder / "sft_dpo_demo" / f"{name}.json").read_text(encoding="utf-8")):
            talk = [(one["from"], one["value"]) for one in (*row["conversations"], row["chosen"])]
            if len(talk) > 2 and talk[0][0] != "system":
                turns.append([(speakers[who], said) for who, said in talk])
    return turns


def test_real_conversations_equal_those_encoded_by_hand(shared_data, pieces, tokenizer):
    talks = conversations(shared_data)
    assert max(map(len, talks)) >= 6
    assert len(talks) > 190
    for turns in talks:
        encoded = encode(DOIT, tokenizer, spoken(turns))
        ids, trained = by_hand(pieces, turns, tokenizer)
        assert encoded.tokens.tolist() == ids
        assert encoded.trained.tolist() == trained
        # Neither a begin nor an end of text, whatever is typed.
        assert not {pieces.bos_id(), pieces.eos_id()} & set(ids)


def test_what_is_typed_never_becomes_a_special_token(tokenizer):
    typed = "<s></s><pad><user><assistant><eot>"
    encoded = encode(DOIT, tokenizer, spoken([("user", typed), ("assistant", typed)]))
    assert sum(int(id) >= PIECES for id in encoded.tokens) == 4
    assert not {1, 2} & set(encoded.tokens.tolist())


def test_rows_of_2048_cut_on_the_right(pieces, tokenizer):
    long = [
        ("user", "数到一千。"),
        ("assistant", "，".join(map(str, range(1_000)))),
        ("user", "好"),
        ("assistant", "完"),
    ]
    ids, trained = by_hand(pieces, long, tokenizer)
    assert len(ids) > 2_048
    documents = [("long", encode(DOIT, tokenizer, spoken(long))), ("two", encode(DOIT, tokenizer, spoken(TWO_TURNS)))]
    kept, counts = apply_length_policy(documents, length=2_048, policy="truncate")
    assert (counts.kept, counts.truncated, counts.no_trained_token) == (2, 1, 0)
    cut = kept[0][1]
    assert cut.tokens.tolist() == ids[:2_048]
    assert cut.trained.tolist() == trained[:2_048]
    assert kept[1][1].tokens.tolist() == TWO_TURNS_IDS
    # A question that fills the row leaves nothing to learn: left out and counted, where the paper's code keeps the row.
    asked = encode(DOIT, tokenizer, spoken([("user", "长" * 3_000), ("assistant", "A")]))
    assert apply_length_policy([("x", asked)], length=2_048, policy="truncate")[1].no_trained_token == 1
