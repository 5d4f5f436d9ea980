"""Records: three shapes in, one value out, and exact words for what is wrong."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, Record, RecordError, Turn, ability_name, parse_record

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())


@st.composite
def records(draw) -> Record:
    """Any valid record: an optional system turn, one or more exchanges, and choices in format 1 only."""
    turns = [Turn(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn(role="user", content=draw(TEXTS)), Turn(role="assistant", content=draw(TEXTS))]
    choices = tuple(draw(st.lists(TEXTS, min_size=2, max_size=4, unique=True) | st.just([])))
    return Record(
        messages=tuple(turns),
        ability=draw(st.sampled_from(ABILITY_NAMES)),
        source=draw(TEXTS | st.just("")),
        type=draw(TEXTS | st.just("")),
        idx=draw(st.none() | st.integers() | TEXTS),
        question_format=1 if choices else 0,
        choices=choices,
        answer=draw(st.none() | TEXTS),
        level=draw(st.none() | st.integers(1, 9)),
        tags=tuple(draw(st.lists(TEXTS, max_size=3, unique=True))),
    )


def doit(**changes) -> dict:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    return {"messages": turns, "type": "math"} | changes


def problem(data: object, **arguments) -> str:
    with pytest.raises(RecordError) as caught:
        parse_record(data, where="data/x.jsonl:17", **arguments)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(record=records())
def test_writing_then_parsing_is_the_identity(record):
    assert parse_record(record.to_dict(), where="x:1") == record


@given(record=records())
def test_json_in_between_changes_nothing(record):
    assert parse_record(json.loads(json.dumps(record.to_dict(), ensure_ascii=False)), where="x:1") == record


@given(record=records(), idx=st.integers(), source=TEXTS)
def test_the_id_does_not_depend_on_the_number_or_the_source(record, idx, source):
    assert dataclasses.replace(record, idx=idx, source=source, id="").id == record.id


@given(record=records(), level=st.integers(1, 9), tags=st.lists(TEXTS, unique=True))
def test_the_id_does_not_depend_on_the_level_or_the_tags(record, level, tags):
    assert dataclasses.replace(record, level=level, tags=tuple(tags), id="").id == record.id


def test_a_record_without_level_and_tags_is_written_as_before_there_were_any():
    assert not {"level", "tags"} & parse_record(doit(), where="x:1").to_dict().keys()


@pytest.mark.parametrize("level", ["Level 5", "3", 0, -1, 2.0, True, None, [1]])
def test_a_level_that_is_no_whole_number_from_one_on_is_left_unread(level):
    assert parse_record(doit(level=level), where="x:1") == parse_record(doit(), where="x:1")


@pytest.mark.parametrize("tags", ["math", ["a", "a"], ["a", 1], ["a", " "], ["\ud800"], {"a": 1}, [["a"]], None, []])
def test_tags_that_are_no_list_of_different_texts_are_left_unread(tags):
    assert parse_record(doit(tags=tags), where="x:1") == parse_record(doit(), where="x:1")


@given(record=records(), other=records())
def test_ids_differ_when_the_contents_do(record, other):
    def content(r: Record) -> tuple:
        return r.messages, r.ability, r.choices, r.answer

    assert (record.id == other.id) == (content(record) == content(other))


def test_the_id_is_sixteen_hex_digits_and_never_changes():
    # Slices are drawn by these ids: another hash would silently change every published slice.
    assert parse_record(doit(), where="x:1").id == "f189e67d123218bb"


def test_an_edited_line_gets_a_new_id_even_where_the_old_one_still_stands_in_it():
    old = parse_record(doit(), where="x:1").to_dict()
    new = parse_record(old | {"answer": "3"}, where="x:1")
    assert new.id != old["id"]
    assert new.idx is None


@pytest.mark.parametrize("spelling", ["role-play", "role_play", "roleplay", "Role Play", "RolePlay"])
def test_role_play_has_one_name_however_it_is_spelt(spelling):
    record = parse_record(doit(type=spelling), where="x:1")
    assert record.ability == "role_play"
    assert record.type == spelling


def test_types_outside_the_roster_are_kept():
    assert ability_name("ceval_physician_fshot") == "ceval_physician_fshot"


def test_the_fields_of_doit_are_read():
    data = doit(idx=3, question_format=1, choices=["2", "3", "4"], answer="2")
    record = parse_record(data, where="x:1")
    assert (record.idx, record.question_format, record.choices, record.answer) == (3, 1, ("2", "3", "4"), "2")
    assert record.messages[-1] == Turn(role="assistant", content="2")


def test_twelve_messages_of_five_shots_are_one_record():
    turns = doit()["messages"] * 6
    assert len(parse_record(doit(messages=turns), where="x:1").messages) == 12


def test_the_gold_becomes_the_reply_when_a_format_1_question_ends_with_the_user():
    data = doit(messages=[{"role": "user", "content": "q"}], question_format=1, choices=["gold", "no", "none"])
    assert parse_record(data, where="x:1").messages[-1] == Turn(role="assistant", content="gold")


def test_alpaca_joins_instruction_and_input_with_a_newline():
    record = parse_record({"instruction": "Add", "input": "1 1", "output": "2"}, where="x:1", ability="math")
    assert [turn.content for turn in record.messages] == ["Add\n1 1", "2"]
    bare = parse_record({"instruction": "Add", "input": "", "output": "2"}, where="x:1", ability="math")
    assert bare.messages[0].content == "Add"


def test_alpaca_with_system_and_history_is_a_conversation():
    data = {"instruction": "b", "output": "B", "system": "s", "history": [["a", "A"]]}
    record = parse_record(data, where="x:1", ability="math")
    assert [(turn.role, turn.content) for turn in record.messages] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "A"),
        ("user", "b"),
        ("assistant", "B"),
    ]


def test_sharegpt_speakers_become_roles_and_its_id_the_idx():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    record = parse_record({"id": "chat_0", "conversations": turns}, where="x:1", ability="code")
    assert [turn.role for turn in record.messages] == ["system", "user", "assistant"]
    assert record.idx == "chat_0"


def test_contents_are_kept_to_the_letter():
    data = doit(messages=[{"role": "user", "content": " a \n"}, {"role": "assistant", "content": "\tb "}])
    assert [turn.content for turn in parse_record(data, where="x:1").messages] == [" a \n", "\tb "]


def test_a_number_as_answer_is_its_json_text():
    assert parse_record(doit(answer=12), where="x:1").answer == "12"
    assert parse_record(doit(answer=0.5), where="x:1").answer == "0.5"


def messages(*pairs: tuple[str, object]) -> dict:
    return doit(messages=[{"role": role, "content": content} for role, content in pairs])


U, A, S = ("user", "q"), ("assistant", "a"), ("system", "s")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (messages(U, ("bot", "a")), "messages[1].role is 'bot'; allowed: system, user, assistant"),
        (messages(U, ("assistant", "  ")), "messages[1].content is empty; write something or leave the record out"),
        (messages(U, ("assistant", None)), "messages[1].content is null; it must be a text"),
        (messages(U, ("assistant", 5)), "messages[1].content is 5; it must be a text"),
        (
            messages(U, ("assistant", "a\ud800")),
            r"messages[1].content holds half of a surrogate pair (\ud800) at character 1",
        ),
        (messages(U), "messages ends with a turn of the user; the last turn is the assistant's"),
        (messages(S), "messages ends with a turn of the system; the last turn is the assistant's"),
        (
            messages(A, U, A),
            "messages[0] is a turn of the assistant; expected: user "
            "(one system turn may come first, then user and assistant take turns)",
        ),
        (
            messages(U, A, S, U, A),
            "messages[2] is a turn of the system; expected: user "
            "(one system turn may come first, then user and assistant take turns)",
        ),
        (doit(messages=[]), "messages is a list of 0; it must be a list with at least one turn"),
        (doit(messages="hi"), "messages is 'hi'; it must be a list with at least one turn"),
        (doit(messages=["hi"]), "messages[0] is 'hi'; it must be an object"),
        (doit(messages=[{"role": "user"}]), "messages[0].content is missing; a turn has 'role' and 'content'"),
        (doit(question_format=2), "question_format is 2; allowed: 0, 1"),
        (doit(question_format=True), "question_format is true; allowed: 0, 1"),
        (
            doit(choices=["a", "b"]),
            "choices has 2 texts but question_format is 0; choices need format 1",
        ),
        (
            doit(question_format=1, choices=["a"]),
            "choices has 1 texts; question_format 1 needs the gold and distractors",
        ),
        (doit(question_format=1, choices=["a", ""]), "choices[1] is empty; write something or leave the record out"),
        (doit(question_format=1, choices=["a", "b", "a"]), "choices[2] repeats choices[0]: no answer is right"),
        (doit(choices={"A": "a"}), "choices is an object; it must be a list of texts, the gold first"),
        (doit(answer=[1]), "answer is a list of 1; it must be a text"),
        (doit(idx=1.5), "idx is 1.5; it must be a number or a text"),
        (doit(source=3), "source is 3; it must be a text"),
        (doit(anwser="2"), "anwser is no field of a record; did you mean 'answer'? rename it"),
        (doit(type=""), "ability is missing; write it in the record or name it for the whole file when you load it"),
        ({"instruction": "i"}, "output is missing; an Alpaca record has 'instruction', 'input' and 'output'"),
        (
            {"instruction": "i", "output": "o", "history": [["a"]]},
            "history[0] is a list of 1; it must be [user, assistant]",
        ),
        (
            {"conversations": [{"from": "bing", "value": "q"}]},
            "conversations[0].from is 'bing'; allowed: system, human, user, gpt, assistant",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}]},
            "conversations ends with a turn of the user; the last turn is the assistant's",
        ),
        (
            {"mesages": []},
            "has 'mesages'; a record has 'messages', 'conversations' or 'instruction' and 'output'"
            "; did you mean 'messages' for 'mesages'?",
        ),
        ({}, "has no field; a record has 'messages', 'conversations' or 'instruction' and 'output'"),
        ([1], "a record is a JSON object, not a list of 1"),
    ],
)
def test_every_problem_names_its_field(data, expected):
    assert problem(data) == f"data/x.jsonl:17: {expected}"


def test_the_field_of_an_error_can_be_read_by_a_program():
    with pytest.raises(RecordError) as caught:
        parse_record(messages(U, ("bot", "a")), where="x:1")
    assert caught.value.field == "messages[1].role"


def test_a_record_in_the_file_of_another_ability_is_an_error():
    found = problem(doit(ability="ethics"), ability="math")
    assert found == "data/x.jsonl:17: ability is 'ethics' in a file of 'math'; move it or correct it"


def test_the_ability_of_the_file_fills_in_a_missing_one_but_type_may_differ():
    assert parse_record(doit(type="ceval"), where="x:1", ability="role-play").ability == "role_play"


@given(data=st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["messages", "role", "content", "choices", "idx", "instruction", "output", "type",
    "conversations", "from", "value"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_whatever_json_comes_in_a_record_or_a_record_error_comes_out(data):
    with contextlib.suppress(RecordError):
        assert isinstance(parse_record(data, where="x:1"), Record)
