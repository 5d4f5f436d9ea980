"""Conifer's conversations: assembled, arranged, fed back, split, and made up where the set is not at hand."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.data.conifer import (
    ARRANGEMENTS,
    PUBLISHED_COUNTS,
    Conifer,
    ConiferRehearsal,
    Conversation,
    Exchange,
    LevelItem,
    WithShareGpt,
    arrange,
    assemble,
    external,
    read_items,
    tasks,
)
from dynamics.data.conifer.files import kind_of
from dynamics.data.conifer.levels import level_of
from dynamics.data.practice.draws import Draws
from dynamics.data.sources import write_jsonl
from dynamics.errors import UserError
from dynamics.record import Record, RecordError, Turn

SMALL = ConiferRehearsal(conversations=103, num_pairs=10, valid_items=5, test_items=8, corpus_documents=20)


def item(query, level, answer="a"):
    return LevelItem(query=query, level=level, question=f"{query}{level}", answer=f"{answer}{level}")


def levels(conversation) -> list:
    return [exchange.level for exchange in conversation.exchanges]


def plain(conversation):
    return [{"role": turn.role, "content": turn.content} for turn in conversation.messages()]


# --- assembling ---------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_the_real_sample_is_assembled_as_published(shared_data):
    folder = shared_data / "conifer" / "samples"
    published = json.loads((folder / "06_multi_turn.json").read_text(encoding="utf-8"))
    made = [{"messages": plain(one)} for one in assemble(read_items(folder / "06_answer.json"))]
    assert made == published
    assert [len(one["messages"]) for one in made] == [2, 4, 6]


@pytest.mark.shared_data
def test_the_real_sample_is_a_source_of_all_three_kinds(shared_data):
    source = Conifer(data_dir=str(shared_data / "conifer"), valid_share=0.0, test_share=0.0)
    loaded = {kind: source.load(kind, "train") for kind in source.abilities()}
    assert {kind: len(one.records) for kind, one in loaded.items()} == {"easy_to_hard": 3, "internal": 2, "external": 1}
    assert not any(one.rejected for one in loaded.values())
    assert [record.level for record in loaded["easy_to_hard"].records] == [1, 3, 5]
    assert [record.level for record in loaded["internal"].records] == [3, 5]
    (critique,) = loaded["external"].records
    assert (len(critique.messages), critique.level) == (4, 5)
    assert critique.messages[2].content.endswith("Please give a revised version.")
    # The question of external feedback is a level item's, so all about a query is of one split.
    assert source.counts()["exchanges of easy_to_hard"] == 6
    assert source.differences()[0] == "conversations: 6 here, 13,606 published"
    tested = dataclasses.replace(source, test_share=0.999)
    items = {ability: tested.load(ability, "test") for ability in tested.evaluated()}
    assert [len(one.records) for one in items.values()] == [2, 1, 1, 0, 1, 1]
    (lonely,) = items["level1"].rejected
    assert lonely.reason == "its query has no other level: there is no answer to tell its own from"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=12), st.randoms())
def test_assembling_groups_by_query_and_sorts_by_level(pairs, random):
    items = [item(query, level) for query, level in dict.fromkeys(pairs)]
    random.shuffle(items)
    made = assemble(items)
    assert [one.key for one in made] == list(dict.fromkeys(one.query for one in items))
    assert all(levels(one) == sorted(levels(one)) for one in made)
    told = [(one.key, exchange.level, exchange.answer) for one in made for exchange in one.exchanges]
    assert sorted(told) == sorted((one.query, one.level, one.answer) for one in items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a JSON object"),
        ({"q": {"query": "x", "diff": "Difficulty 1", "question": "q"}}, "item 1: answer is missing or empty"),
        ({"q": {"query": "x", "diff": "hard", "question": "q", "answer": "a"}}, "diff is 'hard'; allowed"),
        ({"q": {"query": "x", "diff": "Difficulty 1", "question": "p", "answer": "a"}}, "is not the name it stands"),
    ],
)
def test_a_broken_file_of_items_is_an_error_that_names_the_field(tmp_path, content, message):
    path = tmp_path / "06_answer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_items(path)


def test_a_question_that_comes_twice_is_not_lost_silently(tmp_path):
    path = tmp_path / "06_answer.json"
    one = json.dumps({"query": "x", "diff": "Difficulty 1", "question": "q", "answer": "a"})
    path.write_text(f'{{"q": {one}, "q": {one}}}')
    with pytest.raises(UserError, match="has the question 'q' twice"):
        read_items(path)
    path.write_text('{"q": ')
    with pytest.raises(UserError, match="not JSON"):
        read_items(path)


def test_levels_are_read_from_the_words_of_the_published_code():
    assert [level_of(text) for text in ("Difficulty 5", "difficulty 1", " 2 ", "Difficulty 6", "")] == [
        5, 1, 2, None, None
    ]  # fmt: skip


# --- arranging ----------------------------------------------------------------------------------------------------

FIVE = assemble(item("q", level) for level in (3, 1, 5, 2, 4))[0]


def test_the_arrangements_are_those_of_the_ablation():
    order = {name: [levels(one) for one in arrange(FIVE, name, seed=0)] for name in ARRANGEMENTS}
    assert order["easy_to_hard"] == [[1, 2, 3, 4, 5]]
    assert order["hard_to_easy"] == [[5, 4, 3, 2, 1]]
    assert order["hard_only"] == [[5]]
    assert order["single"] == [[1], [2], [3], [4], [5]]
    ((*shuffled,),) = order["shuffled"]
    assert sorted(shuffled) == [1, 2, 3, 4, 5]


def test_a_shuffle_depends_on_its_conversation_and_seed_alone_and_every_order_comes():
    orders = {tuple(levels(arrange(FIVE, "shuffled", seed=seed)[0])) for seed in range(600)}
    assert len(orders) > 110  # of 120
    assert arrange(FIVE, "shuffled", seed=3) == arrange(FIVE, "shuffled", seed=3)
    other = assemble(item("p", level) for level in range(1, 6))[0]
    assert any(
        levels(arrange(FIVE, "shuffled", seed=seed)[0]) != levels(arrange(other, "shuffled", seed=seed)[0])
        for seed in range(5)
    )


def test_a_system_turn_stays_first():
    told = dataclasses.replace(FIVE, system="Be brief.")
    for name in ARRANGEMENTS:
        assert all(one.messages()[0] == Turn(role="system", content="Be brief.") for one in arrange(told, name, seed=0))


# --- feedback -----------------------------------------------------------------------------------------------------


def test_external_feedback_has_one_exchange_or_two_and_belongs_to_its_query():
    four = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, ("q5", "weak", "not brief", "better"), strict=True)
    ]
    made = external([("q5", four), ("r5", [{**four[0], "content": "r5"}, four[3]])], keys={"q5": "q"}, where="f")
    assert [(question, one.key, len(one.exchanges), one.level) for question, one in made] == [
        ("q5", "q", 2, 5), ("r5", "r5", 1, 5)
    ]  # fmt: skip
    with pytest.raises(RecordError, match="item 1: messages are 6"):
        external([("q5", [*four, *four[2:]])], keys={}, where="f")
    with pytest.raises(RecordError, match="is not the question it stands under"):
        external([("other", four)], keys={}, where="f")


@pytest.mark.parametrize(
    ("type", "num_messages", "kind"),
    [
        ("easy_to_hard", 6, "easy_to_hard"),
        ("external_feedback", 2, "external"),
        ("Internal process", 2, "internal"),
        ("process_feedback", 4, "external"),
        ("process_feedback", 2, "internal"),
        ("", 2, "easy_to_hard"),
    ],
)
def test_a_published_rows_kind_is_read_from_its_type(type, num_messages, kind):
    turns = tuple(Turn(role=("user", "assistant")[i % 2], content=f"{i}") for i in range(num_messages))
    assert kind_of(Record(messages=turns, ability="conifer", type=type)) == kind


# --- the published shape ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conifer") / "conifer"
    write_jsonl(folder / "data" / "train_sft-00000-of-00001.jsonl", SMALL.rows())
    return Conifer(data_dir=str(folder), valid_share=0.1, test_share=0.2)


def test_rows_of_the_published_shape_go_by_kind_and_by_split(published, tmp_path):
    counts = published.counts()
    home = Path(published.data_dir)
    other = shutil.copytree(home, tmp_path / "mine")  # found by whatever name, and from above by its own
    assert all(
        dataclasses.replace(published, data_dir=str(folder)).fingerprint() == published.fingerprint()
        and dataclasses.replace(published, data_dir=str(folder)).counts() == counts
        for folder in (other, home.parent)
    )
    assert counts["easy_to_hard"] == 103
    assert counts["internal"] == 10
    assert counts["external"] == 24
    assert counts["conversations"] == 137
    assert len(published.differences()) == len(PUBLISHED_COUNTS)
    trained = {kind: published.load(kind, "train").records for kind in published.abilities()}
    assert 60 < len(trained["easy_to_hard"]) < 85
    # Levels are not in the rows: counted from 1.
    assert all(record.level == len(record.messages) // 2 for record in trained["easy_to_hard"])
    held_out = [record for name in published.evaluated() for record in published.load(name, "test").records]
    assert len(held_out) > 20
    assert all(record.question_format == 1 and len(record.choices) >= 2 for record in held_out)
    said = {turn.content for records in trained.values() for one in records for turn in one.messages[::2]}
    assert not said & {record.messages[0].content for record in held_out}


def test_an_arrangement_changes_what_is_trained_on_and_nothing_else(published):
    other = dataclasses.replace(published, name="mine", arrangement="hard_to_easy")
    assert other.fingerprint() != published.fingerprint() == dataclasses.replace(published, name="mine").fingerprint()
    assert other.corpus_fingerprint() == published.corpus_fingerprint()
    assert list(other.corpus()) == list(published.corpus())
    for name in ("internal", "external"):
        assert other.load(name, "train") == published.load(name, "train")
    for name in published.evaluated():
        assert other.load(name, "valid") == published.load(name, "valid")
    ours, theirs = (source.load("easy_to_hard", "train").records for source in (published, other))
    assert [one.messages[-2:] for one in ours] == [one.messages[:2] for one in theirs]
    single = dataclasses.replace(published, arrangement="single").load("easy_to_hard", "train").records
    assert len(single) == sum(len(one.messages) // 2 for one in ours)


def test_sharegpt_is_mixed_in_by_number(published, tmp_path):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": f"x{i}", "conversations": [talk[0], {**talk[1], "value": f"Hello {i}"}]} for i in range(4)]
    folder = tmp_path / "sharegpt"
    folder.mkdir()
    (folder / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps(rows))
    source = dataclasses.replace(published, sharegpt_dir=str(folder))
    assert source.abilities() == ("easy_to_hard", "internal", "external", "sharegpt")
    assert source.evaluated() == published.evaluated()
    assert len(source.load("sharegpt", "train").records) == 4
    assert source.load("sharegpt", "test").records == ()
    assert WithShareGpt(sharegpt=3)({"easy_to_hard": 9, "sharegpt": 4}) == {"easy_to_hard": 9, "sharegpt": 3}
    assert WithShareGpt(sharegpt=0)({"easy_to_hard": 9}) == {"easy_to_hard": 9}
    with pytest.raises(UserError, match="takes 5 records of 'sharegpt', which has 4; lower sharegpt"):
        WithShareGpt(sharegpt=5)({"sharegpt": 4})


def test_messages_say_what_is_allowed(published, tmp_path):
    with pytest.raises(UserError, match=r"holds neither 06_answer\.json nor the published rows"):
        Conifer(data_dir=str(tmp_path)).counts()
    with pytest.raises(UserError, match="has no ability 'math'; it has easy_to_hard, internal"):
        published.load("math", "train")
    with pytest.raises(UserError, match="there is no split 'dev'"):
        published.load("internal", "dev")
    with pytest.raises(UserError, match="together under 1"):
        dataclasses.replace(published, test_share=0.9)
    with pytest.raises(UserError, match="names a kind twice"):
        dataclasses.replace(published, feedback=("internal", "internal"))


# --- the rehearsal ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_an_answer_follows_every_constraint_and_one_without_a_constraint_breaks_that_one(index, level):
    asked = tasks.task(Draws("test", index)).level(level)
    assert len(asked.constraints) == level
    assert all(tasks.followed(asked, asked.answer).values())
    for constraint in asked.constraints:
        broken = [name for name, kept in tasks.followed(asked, asked.without(constraint).answer).items() if not kept]
        assert broken == [constraint.name]
    assert not any(tasks.followed(asked, "").values())


def test_each_level_keeps_the_constraints_of_the_one_before():
    asked = tasks.task(Draws("test", 1))
    for level in range(1, 5):
        assert asked.level(level + 1).question.startswith(asked.level(level).question + " ; ")


def test_the_rehearsal_has_the_published_proportions_and_shape():
    source = ConiferRehearsal(conversations=515, seed=1)
    records = {kind: source.load(kind, "train").records for kind in source.abilities()}
    assert {kind: len(of) for kind, of in records.items()} == {"easy_to_hard": 515, "internal": 49, "external": 117}
    turns = [len(record.messages) // 2 for record in records["easy_to_hard"]]
    assert sum(turns) / len(turns) == pytest.approx(35_631 / 10_302, abs=0.1)
    assert max(turns) == 5
    four = [len(record.messages) == 4 for record in records["external"]]
    assert sum(four) / len(four) == pytest.approx(2_176 / 2_327, abs=0.05)
    assert all("/ so " in record.messages[-1].content for record in records["internal"])
    assert set(next(source.rows())) == {"prompt", "messages", "type"}


def test_no_query_of_the_rehearsal_is_in_two_splits():
    def queries(messages):
        return {turn.content.partition(" ; ")[0] for turn in messages if turn.role == "user"} - {"no : not"}

    def of_records(names, split):
        return {query for name in names for one in SMALL.load(name, split).records for query in queries(one.messages)}

    def of_pairs(split):
        return {
            query for name in SMALL.paired() for one in SMALL.pairs(name, split).pairs for query in queries(one.prompt)
        }

    sets = [
        of_records(SMALL.abilities(), "train") | of_pairs("train"),
        *(of_records(SMALL.evaluated(), split) | of_pairs(split) for split in ("valid", "test")),
    ]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_the_rehearsals_pairs_break_one_constraint_and_its_items_are_scored_exactly():
    for level, name in enumerate(SMALL.paired(), 1):
        pairs = SMALL.pairs(name, "train").pairs
        assert len({pair.id for pair in pairs}) == SMALL.num_pairs
        assert all(pair.chosen != pair.rejected for pair in pairs)
        records = SMALL.load(name, "test").records
        assert len({record.id for record in records}) == SMALL.test_items
        assert {record.level for record in records} == {level}
        assert all(record.messages[0].content.count(" ; ") == level for record in records)
    for record in SMALL.load("in_conversation", "test").records:
        assert [turn.content.count(" ; ") for turn in record.messages[::2]] == [1, 2, 3, 4, 5]


def test_the_rehearsal_is_the_same_every_time_and_its_arrangements_share_a_base_model():
    again = ConiferRehearsal(**{f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)})
    assert again.load("external", "train") == SMALL.load("external", "train")
    assert SMALL.load("easy_to_hard", "train").records[0].id == FIRST_ID
    prints = {dataclasses.replace(SMALL, arrangement=name).fingerprint() for name in ARRANGEMENTS}
    assert len(prints) == len(ARRANGEMENTS)
    assert len({dataclasses.replace(SMALL, arrangement=name).corpus_fingerprint() for name in ARRANGEMENTS}) == 1
    assert len(list(SMALL.corpus())) == 20
    with pytest.raises(UserError, match="num_pairs=0"):
        ConiferRehearsal(num_pairs=0)
    with pytest.raises(UserError, match="has no ability 'math' here"):
        SMALL.pairs("math", "train")


FIRST_ID = "3bd376e521e42f38"  # of the first record: a change of the generator must raise GENERATOR_VERSION


def test_exchanges_without_a_level_have_none():
    told = Conversation(key="k", exchanges=(Exchange(question="q", answer="a"),))
    assert told.level is None
