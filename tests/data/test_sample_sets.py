"""The sample sets: ten abilities from public files, with disjoint splits, made distractors and complete counts."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.ability import item_of
from dynamics.config import from_json, to_json
from dynamics.data import sample_sets
from dynamics.data.distractors import coarse_distractors, fine_distractor, is_chinese
from dynamics.data.sample_readers import Draft, instruction_ability, question_key
from dynamics.data.sample_sets import Built, SampleSets, split_drafts
from dynamics.data.sources import SPLITS, Rejected, plain_text
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, Turn

TEXTS = st.text(st.sampled_from("ab 01中文==True and最大"), min_size=1, max_size=30)


# Distractors


@given(answer=TEXTS, name=TEXTS)
def test_a_fine_distractor_differs_from_the_answer_and_depends_on_the_name_alone(answer, name):
    made = fine_distractor(answer, name=name)
    assert made != answer
    assert made == fine_distractor(answer, name=name)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("if a == b: return True", "if a != b: return False"),
        ("the first and the best", "the last or the best"),
        ("最大值", "最小值"),
        ("nothing to alter", None),
        ("andrew", None),  # words are altered as wholes
    ],
)
def test_numbers_operators_and_terms_are_altered(answer, expected):
    assert fine_distractor(answer, name="x") == expected


def test_numbers_keep_their_width_and_change_their_value():
    made = fine_distractor("room 007", name="x")
    assert made is not None
    assert re.fullmatch(r"room \d{3}", made)
    assert made != "room 007"


@given(answer=TEXTS, others=st.lists(TEXTS, max_size=8), count=st.integers(0, 3), data=st.data())
def test_coarse_distractors_are_other_answers_in_the_same_script_whatever_their_order(answer, others, count, data):
    made = coarse_distractors(answer, others, count=count, name="x")
    assert len(set(made)) == len(made) <= count
    assert all(one in others and one != answer and is_chinese(one) == is_chinese(answer) for one in made)
    assert made == coarse_distractors(answer, data.draw(st.permutations(others)), count=count, name="x")


# Splits


def draft(key: str, number: int) -> Draft:
    turns = (Turn(role="user", content=f"{key}?"),)
    return Draft(ability="code", key=key, turns=turns, gold=str(number), source="x", line=number)


@given(keys=st.lists(st.text("abcdef", min_size=1, max_size=3), max_size=60))
def test_splits_are_a_partition_and_no_question_stands_in_two(keys):
    drafts = [draft(key, number) for number, key in enumerate(keys)]
    splits = split_drafts(drafts, ability="code")
    assert sorted((d for members in splits.values() for d in members), key=lambda d: d.line) == drafts
    owners: dict[str, set[str]] = {}
    for split, members in splits.items():
        for member in members:
            owners.setdefault(member.key, set()).add(split)
    assert all(len(some) == 1 for some in owners.values())
    assert all(len(splits[split]) <= len(drafts) // 5 for split in ("valid", "test"))


@given(keys=st.lists(st.text("abcdef", min_size=1, max_size=3), max_size=30, unique=True), data=st.data())
def test_splits_do_not_depend_on_the_order_of_the_files(keys, data):
    drafts = [draft(key, number) for number, key in enumerate(keys)]
    shuffled = data.draw(st.permutations(drafts))
    one, other = (split_drafts(list(some), ability="code") for some in (drafts, shuffled))
    assert {split: {d.key for d in one[split]} for split in SPLITS} == {
        split: {d.key for d in other[split]} for split in SPLITS
    }


@pytest.mark.parametrize(
    ("instruction", "given_text", "gold", "expected"),
    [
        ("Write a Python function that adds", "", "def", "code"),
        ("把下面的代码改短", "", "x", "code"),
        ("Summarize the text", "long " * 20, "short", "understanding"),
        ("Write a poem about rain", "", "rain", "creative_writing"),
        ("写一首关于夏天的诗", "", "夏", "creative_writing"),
        ("Pretend you are a pirate", "", "arr", "role_play"),
        ("What is the capital of France?", "", "Paris", ""),
    ],
)
def test_an_instruction_is_sorted_by_its_words(instruction, given_text, gold, expected):
    assert instruction_ability(instruction, given=given_text, gold=gold) == expected


# The folder


def test_a_missing_folder_says_how_to_give_it(tmp_path, monkeypatch):
    ask = "give the folder that holds cmmlu, agieval, belle and sft_dpo_demo with --data-dir or DYNAMICS_DATA_DIR"
    with pytest.raises(UserError) as caught:
        SampleSets(data_dir=str(tmp_path / "no")).load("math", "train")
    assert str(caught.value) == f"the sample-data folder {tmp_path}/no (data_dir) does not exist; {ask}"
    (tmp_path / "cmmlu").mkdir()
    monkeypatch.setenv("DYNAMICS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        SampleSets().fingerprint()
    expected = f"the sample-data folder {tmp_path} (DYNAMICS_DATA_DIR) has no agieval, belle, sft_dpo_demo; {ask}"
    assert str(caught.value) == expected
    monkeypatch.delenv("DYNAMICS_DATA_DIR")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the sample-data folder \.\./shared/data \(the default\) does not exist"):
        SampleSets().folder()


def test_the_setting_survives_json():
    assert from_json(to_json(SampleSets(data_dir="x"))) == SampleSets(data_dir="x")


@pytest.fixture(scope="module")
def source(shared_data: Path) -> SampleSets:
    return SampleSets(data_dir=str(shared_data))


@pytest.fixture(scope="module")
def built(source: SampleSets) -> Built:
    return source.built()


NEEDS_DATA = pytest.mark.shared_data


@NEEDS_DATA
def test_the_table_in_the_docstring_is_what_the_folder_gives(built):
    rows = re.findall(r"^    (\w+) +(\d+) +(\d+) +(\d+)   ", sample_sets.__doc__ or "", re.MULTILINE)
    documented = {(name, split): int(n) for name, *counts in rows for split, n in zip(SPLITS, counts, strict=True)}
    assert documented == built.counts()


@NEEDS_DATA
def test_no_question_of_valid_or_test_is_asked_in_training_or_stands_in_the_corpus(built, source):
    def keys(*splits: str) -> set[str]:
        return {
            question_key("".join(turn.content for turn in record.messages if turn.role == "user"))
            for (_, split), records in built.records.items()
            if split in splits
            for record in records
        }

    assert not keys("train") & keys("valid", "test")
    corpus = set(source.corpus())
    evaluated = [r for (_, split), records in built.records.items() if split != "train" for r in records]
    assert not [record.id for record in evaluated if plain_text(record) in corpus]


@NEEDS_DATA
def test_every_item_of_valid_and_test_can_be_scored_and_has_its_kind(built):
    kinds = {
        ability: Counter(item_of(r).kind for split in ("valid", "test") for r in built.records[ability, split])
        for ability in ABILITY_NAMES
    }
    assert not any(count["exact"] for count in kinds.values())
    assert {ability for ability, count in kinds.items() if set(count) == {"perplexity"}} == {
        "code",
        "creative_writing",
        "role_play",
    }
    assert set(kinds["math"]) == {"choice", "numeric"}
    assert set(kinds["ethics"]) == {"multi"}


@NEEDS_DATA
def test_made_distractors_are_marked_and_never_trained_on_as_golds(built):
    golds = {r.messages[-1].content for (_, split), some in built.records.items() if split == "train" for r in some}
    for (_, split), records in built.records.items():
        for record in records:
            assert (record.question_format == 1) == ("distractors made: " in record.type)
            assert record.question_format == 0 or (split != "train" and len(record.choices) == 3)
            marks = record.type.partition("made: ")[2].split(", ")
            coarse = [c for c, mark in zip(record.choices[1:], marks, strict=False) if mark == "coarse"]
            # A short answer ("Positive") may be the gold of another question too; a text may not.
            assert not [text for text in coarse if len(text) > 40 and text in golds]


@NEEDS_DATA
def test_everything_that_gave_no_record_is_counted(built):
    reasons = Counter(one.reason for some in built.rejected.values() for one in some)
    assert reasons["std_answer is empty: there is no gold to learn from or to score against"] == 369
    assert sum(count for reason, count in reasons.items() if reason.startswith("label is ")) == 42
    assert built.unused["belle/eval_set.jsonl"] == 285
    # BELLE: each of its thousand rows is a record, a rejection or counted as unused.
    records = sum(r.source == "belle/eval_set.jsonl" for some in built.records.values() for r in some)
    rejected = sum(one.file == "belle/eval_set.jsonl" for some in built.rejected.values() for one in some)
    assert records + rejected + 285 == 1000


@NEEDS_DATA
def test_written_files_load_through_the_ordinary_loader(source, built, tmp_path):
    files = source.as_files(tmp_path)
    folder = Path(files.data_dir)
    assert folder == tmp_path / f"sample_sets-{source.fingerprint()}"
    assert files.found().layout == "folders"
    assert files.abilities() == ABILITY_NAMES
    for (ability, split), records in built.records.items():
        loaded = files.load(ability, split)
        assert loaded == source.load(ability, split)
        assert loaded.records == records
    assert list(files.corpus()) == list(source.corpus())
    assert (folder / "rejected.jsonl").read_text(encoding="utf-8").count("\n") == sum(map(len, built.rejected.values()))
    rejected = [one for ability in ABILITY_NAMES for one in files.load(ability, "train").rejected]
    assert len(rejected) == sum(map(len, built.rejected.values())) > 0
    time = (folder / "math" / "train.jsonl").stat().st_mtime_ns
    assert source.as_files(tmp_path) == files
    assert (folder / "math" / "train.jsonl").stat().st_mtime_ns == time


def test_rows_whose_ability_cannot_be_told_are_in_the_counts():
    lost = Rejected(file="x", line=1, reason="r", text="t")
    built = Built(records={}, rejected={"": (lost,), "math": (lost,)}, unused={}, extra_text=())
    assert [len(built.rejected_of(ability)) for ability in ("biology", "history", "math")] == [1, 0, 1]


@NEEDS_DATA
def test_building_again_gives_the_same_records(source, built):
    sample_sets._built.cache_clear()
    assert source.built() == built
