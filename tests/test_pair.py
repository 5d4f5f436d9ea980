"""Pairs: two replies to one prompt, and what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.errors import UserError
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


WHY = (Turn(role="user", content="Why?"),)
_ASKED = [{"role": "user", "content": "Why?"}]
_TALK = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?"


def _said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
        {"prompt": _ASKED, "chosen": "good", "rejected": "bad"},
        {"prompt": _ASKED, "chosen": _said("good"), "rejected": _said("bad")},
        {"prompt": _ASKED, "chosen": [*_ASKED, *_said("good")], "rejected": [*_ASKED, *_said("bad")]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: good", "rejected": "\n\nHuman: Why?\n\nAssistant: bad"},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " good", "rejected": " bad"},
        {"chosen": [*_ASKED, *_said("good")], "rejected": [*_ASKED, *_said("bad")], "prompt": ""},
    ],
)
def test_every_shape_gives_the_same_pair(row):
    assert parse_pair(row, where="f:1") == Pair(prompt=WHY, chosen="good", rejected="bad")


def test_ids_of_full_pairs_are_those_of_before_judgements():
    assert parse_pair(_ultra(), where="f:1").id == "13494a0ea9747922"


def test_a_dialogue_keeps_its_turns_and_its_texts_to_the_letter():
    row = {side: f"{_TALK}\n\nAssistant: {side}\n\n of old\nHuman: no mark " for side in ("chosen", "rejected")}
    pair = parse_pair(row, where="f:1")
    assert [turn.content for turn in pair.prompt] == ["Hi", "Hello", "Why?"]
    assert pair.chosen == "chosen\n\n of old\nHuman: no mark "


def test_a_system_text_goes_before_a_plain_prompt():
    pair = parse_pair({"system": "Be brief.", "prompt": "Why?", "chosen": "a", "rejected": "b"}, where="f:1")
    assert pair.prompt == (Turn(role="system", content="Be brief."), *WHY)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": _ASKED, "completion": _said("So.")},
        {"messages": [*_ASKED, *_said("So.")]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    ],
)
def test_a_judgement_has_one_side(row):
    good, bad = (parse_pair({**row, "label": label}, where="f:1") for label in (True, False))
    assert good == Pair(prompt=WHY, chosen="So.", rejected=None)
    assert bad == Pair(prompt=WHY, chosen=None, rejected="So.")
    assert good.id != bad.id
    assert not good.is_full
    with pytest.raises(RecordError, match="f:1: judges one reply; here every row has 'chosen' and 'rejected'"):
        parse_pair({**row, "label": True}, where="f:1", both=True)


def test_weights_are_read_and_change_no_id():
    one, heavy = parse_pair(_ultra(), where="f:1"), parse_pair(_ultra(weight=2), where="f:1")
    assert (one.weight, heavy.weight) == (1.0, 2.0)
    assert one.id == heavy.id
    assert parse_pair(_ultra(weight=None), where="f:1").weight == 1.0


@pytest.mark.parametrize("sides", [{"chosen": None, "rejected": None}, {"chosen": "a", "rejected": "b", "weight": 0.0}])
def test_what_is_no_pair_cannot_be_made(sides: dict):
    with pytest.raises(UserError, match=r"neither a chosen nor a rejected reply|weight=0"):
        Pair(prompt=WHY, **sides)


_JUDGED = {"prompt": "Why?", "completion": "So.", "label": False, "weight": 0.25, "source": "s"}


@pytest.mark.parametrize("row", [_ultra(source="s"), _sharegpt(), _ultra(weight=0.5), _JUDGED])
def test_plain_data_gives_back_the_same_pair(row):
    pair = parse_pair(row, where="f:1")
    assert parse_pair(json.loads(json.dumps(pair.to_dict())), where="f:1") == pair


_TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(_TEXT, min_size=1, max_size=4),
    sides=st.tuples(_TEXT, _TEXT).filter(lambda two: two[0] != two[1]),
    missing=st.sampled_from([None, 0, 1]),
    weight=st.floats(0, exclude_min=True, allow_infinity=False),
)
def test_every_pair_survives_json(texts: list[str], sides: tuple[str, str], missing: int | None, weight: float):
    roles = ["user", "assistant", "user"] if len(texts) % 2 else ["system", "user", "assistant", "user"]
    prompt = tuple(Turn(role=role, content=text) for role, text in zip(roles, texts, strict=False))
    chosen, rejected = (None if missing == place else text for place, text in enumerate(sides))
    pair = Pair(prompt=prompt, chosen=chosen, rejected=rejected, weight=weight, source="s")
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
        (_ultra() | {"chosen": "good"}, "chosen is a text and the other reply a list of messages; write both as texts"),
        (_ultra() | {"chosen": None}, "chosen is null; it is a text or a list of messages"),
        ({"prompt": "Why?", "chosen": "good", "rejected": None}, "rejected is null; it is a text or a list"),
        ({"prompt": "Why?", "chosen": {"content": "a"}, "rejected": "b"}, "chosen is an object; it is a text or a"),
        ({"prompt": 5, "chosen": "good", "rejected": "bad"}, "prompt is 5; it is a text or a list of messages"),
        (
            _ultra(score_chosen=1, score_rejected=2.5),
            "score_chosen is 1, below score_rejected 2.5; they are swapped",
        ),
        (_sharegpt() | {"chosen": {"from": "gpt", "value": ""}}, "chosen.value is empty"),
        (_sharegpt() | {"rejected": "no"}, "rejected is 'no'; it must be an object"),
        (_sharegpt() | {"conversations": []}, "conversations must be a list with at least one turn"),
        ({"prompt": "Why?", "completion": "So."}, "label is missing; it is true for a desirable reply"),
        ({"prompt": "Why?", "completion": "So.", "label": 1}, "label is 1; it is true for a desirable reply"),
        ({"prompt": "Why?", "label": True}, "completion is missing; it is the reply that 'label' judges"),
        ({"prompt": "Why?", "completion": " ", "label": True}, "completion is empty"),
        ({"completion": "So.", "label": True}, "prompt is missing; it is a text or a list of messages"),
        ({"prompt": "", "completion": "So.", "label": True}, "prompt is empty; it is a text"),
        (
            {"prompt": _ASKED, "completion": [{"role": "user", "content": "x"}], "label": True},
            "completion[0] is a turn",
        ),
        ({"prompt": "Why?", "completion": 3, "label": True}, "completion must be a text or a list of messages"),
        ({"prompt": "Why?", "chosen": "good", "rejected": "good"}, "rejected is the chosen reply again"),
        ({"prompt": "Why?", "chosen": "good", "rejected": ""}, "rejected is empty; write something"),
        ({"prompt": " ", "chosen": "good", "rejected": "bad"}, "prompt is empty; write something"),
        ({"chosen": "good", "rejected": "bad"}, 'chosen is a text without a prompt; add "prompt"'),
        ({"chosen": f"{_TALK}\n\nHuman: Oh", "rejected": "x"}, "chosen[3] is a turn of the user"),
        ({"chosen": f"{_TALK}\n\nAssistant: a", "rejected": f"{_TALK}\n\nAssistant: "}, "rejected[3].content is empty"),
        (_ultra() | {"prompt": [{"role": "user", "content": "What?"}]}, "prompt is not what stands before the reply"),
        (_ultra(weight=0), "weight is 0; it must be a finite number above 0"),
        (_ultra(weight=-1.5), "weight is -1.5; it must be a finite number above 0"),
        (_ultra(weight=True), "weight is true; it must be a finite number above 0"),
        (_ultra(weight=float("inf")), "weight is Infinity; it must be a finite number above 0"),
        (_ultra(weight="2"), 'weight is "2"; it must be a finite number above 0'),
        (_ultra(weights=[1, 2]), "weights is no field of a pair; did you mean 'weight'? rename it"),
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


def test_the_rows_of_the_guide_are_what_it_says():
    guide = (Path(__file__).parents[1] / "docs" / "guide" / "pairs.md").read_text(encoding="utf-8")
    same, judged = (_rows(part.partition("```")[0]) for part in guide.split("```json\n")[1:])
    assert len(same) == 5
    assert len({parse_pair(row, where="f:1").id for row in same}) == 1
    assert [parse_pair(row, where="f:1").is_full for row in judged] == [False, False]


def _rows(text: str) -> list[dict]:
    rows, start = [], 0
    while text[start:].strip():
        start = text.index("{", start)
        row, start = json.JSONDecoder().raw_decode(text, start)
        rows.append(row)
    return rows
