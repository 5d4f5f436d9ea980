"""Pairs: two replies to one prompt, and what is refused."""

import json
from pathlib import Path

import pytest

from dynamics.pair import Pair, parse_pair
from dynamics.record import RecordError, Turn


def _ultra(chosen: str = "good", rejected: str = "bad", **fields: object) -> dict:
    prompt = {"role": "user", "content": "Why?"}
    sides = {"chosen": chosen, "rejected": rejected}
    rows = {side: [prompt, {"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": "Why?", "prompt_id": "f0", **rows, **fields}


def _sharegpt(**fields: object) -> dict:
    talk = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Why?"},
    ]
    reply = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    return {"conversations": talk, **reply, **fields}


def test_the_turns_before_the_reply_are_the_prompt():
    pair = parse_pair(_ultra(score_chosen=8.0, score_rejected=5.5), where="f:1", source="uf")
    assert pair == Pair(prompt=(Turn(role="user", content="Why?"),), chosen="good", rejected="bad", source="uf")


def test_a_conversation_of_several_turns_is_a_prompt_too():
    pair = parse_pair(_sharegpt(), where="f:1")
    assert [turn.role for turn in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("chosen", "rejected")


def test_a_system_text_of_its_own_comes_first():
    row = _sharegpt(system="Be kind.")
    row["conversations"] = row["conversations"][1:]
    assert parse_pair(row, where="f:1").prompt[0] == Turn(role="system", content="Be kind.")


def test_the_id_is_of_the_content_alone():
    one, other = parse_pair(_ultra(), where="f:1", source="a"), parse_pair(_ultra(prompt_id="x"), where="g:9")
    assert one.id == other.id
    assert len(one.id) == 16
    assert parse_pair(_ultra(chosen="bad", rejected="good"), where="f:1").id != one.id


@pytest.mark.parametrize("row", [_ultra(source="s"), _sharegpt()])
def test_plain_data_gives_back_the_same_pair(row):
    pair = parse_pair(row, where="f:1")
    assert parse_pair(json.loads(json.dumps(pair.to_dict())), where="f:1") == pair


_OTHER_PROMPT = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "bad"}]
_BLANK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " "}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "a pair is a JSON object with 'chosen' and 'rejected'"),
        ({"chosen": []}, "rejected is missing; a pair has 'chosen' and 'rejected'"),
        (_ultra(rejected="good"), "rejected is the chosen reply again; nothing can be preferred"),
        (_ultra() | {"rejected": _OTHER_PROMPT}, "rejected[0] differs from chosen[0]; both answer one prompt"),
        (_ultra() | {"rejected": _BLANK}, "rejected[1].content is empty; write something or leave the record out"),
        (_ultra() | {"prompt": "What?"}, "prompt is not what the user says first in chosen and rejected"),
        (_ultra() | {"chosen": "good"}, "chosen is 'good'; it must be a list with at least one turn"),
        (
            _ultra(score_chosen=1, score_rejected=2.5),
            "score_chosen is 1, below score_rejected 2.5; they are swapped",
        ),
        (_sharegpt() | {"chosen": {"from": "gpt", "value": ""}}, "chosen.value is empty"),
        (_sharegpt() | {"rejected": "no"}, "rejected is 'no'; it must be an object"),
        (_sharegpt() | {"conversations": []}, "conversations must be a list with at least one turn"),
        (
            _sharegpt() | {"rejected": {"from": "human", "value": "x"}},
            "rejected is a turn of the user; expected: assistant",
        ),
    ],
)
def test_what_is_refused_is_named(row, message):
    with pytest.raises(RecordError) as error:
        parse_pair(row, where="p.jsonl:3")
    assert str(error.value).startswith(f"p.jsonl:3: {message}")


def test_prompts_of_other_lengths_are_refused():
    longer = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    longer += [{"role": "user", "content": "Oh?"}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(RecordError, match=r"rejected answers a prompt of 3 turns, chosen one of 1"):
        parse_pair(_ultra() | {"rejected": longer}, where="f:1")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "systems", "distinct"), [("dpo_en_demo.json", 80, 295), ("dpo_zh_demo.json", 64, 289)]
)
def test_real_preferences_all_read(shared_data: Path, name: str, systems: int, distinct: int):
    rows = json.loads((shared_data / "sft_dpo_demo" / name).read_text(encoding="utf-8"))
    pairs = [parse_pair(row, where=f"{name}:{index}") for index, row in enumerate(rows)]
    assert len(pairs) == 300
    assert len({pair.id for pair in pairs}) == distinct
    assert sum(pair.prompt[0].role == "system" for pair in pairs) == systems
    assert all(pair.prompt[-1].role == "user" for pair in pairs)
