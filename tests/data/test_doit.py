"""DoIT's published layout with its quirks: what is read from where, and what a missing file is told as."""

import json
import shutil
from pathlib import Path

import pytest

from dynamics.ability import item_of
from dynamics.config import from_json, override, to_json
from dynamics.data.doit import CEVAL_NAMES, Doit, Part, find_doit
from dynamics.data.sources import SPLITS, Files, Source
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES

PHYSICIAN = "ceval_physician"


def row(text: str, type: str, number: int = 0, **more: object) -> dict:
    turns = [{"role": "user", "content": f"{text} {number}？\nA. 一\nB. 二"}, {"role": "assistant", "content": "A"}]
    return {"messages": turns, "idx": number, "type": type, "question_format": 0, **more}


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return path


def five_shot(number: int, name: str = PHYSICIAN) -> dict:
    """12 messages: five questions with answers, then the one that is asked, with its gold."""
    turns = [turn for shot in range(6) for turn in row(f"{name} {number}", name, shot)["messages"]]
    return {"messages": turns, "idx": number, "type": f"{name}_fshot", "question_format": 0}


SPELT = {"1000": "role-play", "full": "role_play", "valid": "roleplay", "test": "role-play"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder in the published layout: two train records of each ability in 1000, three in full."""
    for ability in ABILITY_NAMES:
        for place, many in (("1000", 2), ("full", 3), ("valid", 1), ("test", 2)):
            stem = SPELT[place] if ability == "role_play" else ability
            type_ = "role-play" if ability == "role_play" else ability
            split = "train" if place in ("1000", "full") else place
            rows = [row(f"{ability} {split}", type_, number) for number in range(many)]
            write(tmp_path / "curated" / place / f"{stem}_{place}.json", *rows)
    write(tmp_path / "synthetic" / "40960" / "alpaca_gpt4_40960.json", *[row("s", "alpaca", n) for n in range(4)])
    write(tmp_path / "ceval_physician.json", five_shot(0), five_shot(1))
    return tmp_path


def counts(source: Source, split: str = "train") -> dict[str, int]:
    return {ability: len(source.load(ability, split).records) for ability in source.abilities()}


def test_each_part_trains_on_its_own_files(published):
    ten = dict.fromkeys(ABILITY_NAMES, 2)
    full = dict.fromkeys(ABILITY_NAMES, 3)
    assert counts(Doit(data_dir=str(published))) == ten
    assert counts(Doit(data_dir=str(published), part="full")) == full
    assert counts(Doit(data_dir=str(published), part="synthetic")) == {"synthetic": 4}
    assert counts(Doit(data_dir=str(published), part="mixed")) == {**full, "synthetic": 4}


@pytest.mark.parametrize("part", ["curated", "full", "synthetic", "mixed"])
def test_all_parts_are_scored_on_the_same_records(published, part: Part):
    source = Doit(data_dir=str(published), part=part)
    assert source.evaluated() == (*ABILITY_NAMES, PHYSICIAN)
    for split in ("valid", "test"):
        for ability in source.evaluated():
            wanted = Doit(data_dir=str(published)).load(ability, split)
            assert source.load(ability, split) == wanted
    assert [len(source.load(PHYSICIAN, split).records) for split in SPLITS] == [0, 0, 2]
    assert source.load("synthetic", "test").records == () if part in ("synthetic", "mixed") else True


def test_what_a_part_does_not_train_on_is_empty_and_what_is_unknown_an_error(published):
    source = Doit(data_dir=str(published), part="synthetic")
    assert source.load("math", "train").records == ()
    assert len(source.load("math", "test").records) == 2
    with pytest.raises(
        UserError, match=r"part 'synthetic' of .* has no ability 'maths'; it has synthetic, biology, .*"
    ):
        source.load("maths", "train")
    with pytest.raises(UserError, match="has no ability 'synthetic'"):
        Doit(data_dir=str(published)).load("synthetic", "train")
    with pytest.raises(UserError, match="there is no split 'dev'"):
        source.load("math", "dev")


def test_records_say_their_ability_and_file_and_keep_their_type(published):
    first = Doit(data_dir=str(published)).load("role_play", "train").records[0]
    assert (first.ability, first.type) == ("role_play", "role-play")
    assert first.source == "curated/1000/role-play_1000.json"
    ceval = Doit(data_dir=str(published)).load(PHYSICIAN, "test").records[0]
    assert (ceval.ability, ceval.type, len(ceval.messages)) == (PHYSICIAN, "ceval_physician_fshot", 12)
    item = item_of(ceval)
    assert (item.kind, item.reference, item.options, len(item.prompt)) == ("choice", "A", ("A", "B"), 11)
    synthetic = Doit(data_dir=str(published), part="mixed").load("synthetic", "train").records[0]
    assert (synthetic.ability, synthetic.type) == ("synthetic", "alpaca")


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("ceval_physician.json", "test"),
        ("ceval_physician_test.json", "test"),
        ("curated/ceval_physician.json", "test"),
        ("curated/ceval_physician_valid.json", "valid"),
        ("curated/test/ceval_physician.json", "test"),
        ("curated/test/ceval_physician_test.json", "test"),
        ("curated/valid/ceval_physician.json", "valid"),
        ("curated/valid/ceval_physician_valid.json", "valid"),
        ("curated/test/ceval_physician_fshot_test.json", "test"),
    ],
)
def test_ceval_files_may_lie_in_several_places(published, place, split):
    (published / "ceval_physician.json").unlink()
    assert Doit(data_dir=str(published)).evaluated() == ABILITY_NAMES
    write(published / place, five_shot(0))
    source = Doit(data_dir=str(published))
    assert source.evaluated() == (*ABILITY_NAMES, PHYSICIAN)
    assert {s: len(source.load(PHYSICIAN, s).records) for s in SPLITS} == {"train": 0, "valid": 0, "test": 0, split: 1}


def test_all_three_ceval_parts_come_in_their_order(published):
    for name in reversed(CEVAL_NAMES):
        write(published / f"{name}.json", five_shot(0, name))
    write(published / "curated" / "valid" / "ceval_physician.json", five_shot(5))
    source = Doit(data_dir=str(published))
    assert source.evaluated() == (*ABILITY_NAMES, *CEVAL_NAMES)
    assert [len(source.load(PHYSICIAN, split).records) for split in ("valid", "test")] == [1, 1]


def test_the_format_is_read_from_the_record_whatever_the_ability(published):
    one = row("chinese", "chinese", question_format=1, choices=["A", "B", "C"])
    write(published / "curated" / "test" / "chinese_test.json", one, row("chinese", "chinese", 1))
    write(published / "curated" / "test" / "code_test.json", row("code", "code"))
    source = Doit(data_dir=str(published))
    assert [item_of(r).kind for r in source.load("chinese", "test").records] == ["perplexity", "choice"]
    assert [item_of(r).kind for r in source.load("code", "test").records] == ["choice"]


def test_a_train_record_of_format_1_needs_no_choices(published):
    for place in ("1000", "test"):
        write(published / "curated" / place / f"code_{place}.json", row("code", "code", question_format=1))
    source = Doit(data_dir=str(published))
    assert [record.question_format for record in source.load("code", "train").records] == [0]
    with pytest.raises(UserError, match=r"code_test.json:1: choices has 0 texts; question_format 1 needs the gold"):
        source.load("code", "test")


def test_the_folder_may_be_the_repository_the_data_or_curated_itself(published, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    (root / "data").symlink_to(published)
    given = {name: Doit(data_dir=str(path)) for name, path in
             {"repository": root, "data": published, "curated": published / "curated"}.items()}  # fmt: skip
    assert len({source.fingerprint() for source in given.values()}) == 1
    assert len({source.load("math", "test") for source in given.values()}) == 1
    assert all(PHYSICIAN in source.evaluated() for source in given.values())


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            ["curated/1000/math_1000.json"],
            r"lacks 1 of the 30 files of part 'curated': curated/1000/math_1000.json; copy",
        ),
        (
            ["curated/test/role-play_test.json", "curated/valid/code_valid.json"],
            r"lacks 2 of the 30 .*: curated/valid/code_valid.json, curated/test/role_play_test.json; copy",
        ),
    ],
)
def test_missing_files_are_named_one_by_one(published, lost, message):
    for path in lost:
        (published / path).unlink()
    with pytest.raises(UserError, match=message):
        Doit(data_dir=str(published)).found()


def test_only_what_the_part_reads_must_be_there(published):
    (published / "synthetic" / "40960" / "alpaca_gpt4_40960.json").unlink()
    (published / "curated" / "full" / "math_full.json").unlink()
    assert counts(Doit(data_dir=str(published)))["math"] == 2
    shutil.rmtree(published / "curated" / "1000")
    shutil.rmtree(published / "curated" / "valid")
    assert Doit(data_dir=str(published)).load("math", "test").records
    with pytest.raises(UserError, match=r"lacks 10 of the 10 files"):
        Doit(data_dir=str(published)).load("math", "train")
    with pytest.raises(UserError, match=r"lacks 12 of the 31 .*curated/full/math_full.json, synthetic/40960/\*.json"):
        find_doit(published, "mixed")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("synthetic/40960/more.json", "has 2 synthetic files: synthetic/40960/alpaca_gpt4_40960.json and .*; keep one"),
        ("curated/valid/role-play_valid.json", "has valid records of 'role_play' twice: .* and .*; keep one"),
        ("curated/ceval_physician.json", "has test records of 'ceval_physician' twice: "),
        ("curated/test/music_test.json", "curated/test/music_test.json in .* is of none of the ten abilities: biology"),
        ("corpus.jsonl", "has its corpus twice"),
    ],
)
def test_files_that_are_there_twice_or_unknown_are_refused(published, path, message):
    if path == "corpus.jsonl":
        write(published / "corpus.jsonl.gz", {"text": "a"})
    write(published / path, row("x", "x"))
    with pytest.raises(UserError, match=message):
        Doit(data_dir=str(published), part="mixed").found()


def test_a_folder_without_curated_says_what_it_has(published):
    with pytest.raises(UserError, match="holds neither curated/ nor data/curated/; it has 40960; give the folder"):
        Doit(data_dir=str(published / "synthetic")).evaluated()
    with pytest.raises(UserError, match="does not exist; give the folder that holds DoIT's curated/"):
        Doit(data_dir=str(published / "no")).evaluated()
    write(published / "data" / "curated" / "x.json", row("x", "x"))
    with pytest.raises(UserError, match="has both curated/ and data/curated/"):
        Doit(data_dir=str(published)).evaluated()


def test_the_fingerprint_follows_the_files_that_the_part_reads(published):
    parts: tuple[Part, ...] = ("curated", "full", "synthetic")
    before = {part: Doit(data_dir=str(published), part=part).fingerprint() for part in parts}
    assert len(set(before.values())) == 3
    write(published / "curated" / "full" / "math_full.json", row("other", "math"))
    after = {part: Doit(data_dir=str(published), part=part).fingerprint() for part in parts}
    assert [part for part in parts if before[part] != after[part]] == ["full"]
    write(published / "ceval_urban_and_rural_planner.json", five_shot(0, "ceval_urban_and_rural_planner"))
    assert all(Doit(data_dir=str(published), part=part).fingerprint() != after[part] for part in parts)


def test_a_corpus_file_is_shared_by_the_parts_and_else_the_records_are_read(published):
    curated, synthetic = (Doit(data_dir=str(published), part=part) for part in ("curated", "synthetic"))
    assert (len(list(curated.corpus())), len(list(synthetic.corpus()))) == (20, 4)
    assert curated.corpus_fingerprint() != synthetic.corpus_fingerprint()
    write(published / "corpus.jsonl", {"text": "one"}, {"text": "two"})
    assert list(curated.corpus()) == list(synthetic.corpus()) == ["one", "two"]
    assert curated.corpus_fingerprint() == synthetic.corpus_fingerprint()
    assert curated.fingerprint() != synthetic.fingerprint()


def test_bad_lines_are_told_or_counted(published):
    path = published / "curated" / "1000" / "math_1000.json"
    path.write_text(path.read_text() + "oops\n")
    with pytest.raises(UserError, match=r"math_1000.json:3: "):
        Doit(data_dir=str(published)).load("math", "train")
    loaded = Doit(data_dir=str(published), on_bad_record="skip").load("math", "train")
    assert (len(loaded.records), len(loaded.rejected)) == (2, 1)


def test_it_is_a_setting_and_files_still_reads_the_same_folder(published):
    source = Doit(name="mixed", data_dir=str(published), part="mixed")
    assert from_json(to_json(source)) == source
    assert override(source, ["part=full"]).part == "full"
    with pytest.raises(UserError, match="part=all: needs 'curated' or 'full' or 'synthetic' or 'mixed'"):
        override(source, ["part=all"])
    files = Files(data_dir=str(published))
    assert files.evaluated() == files.abilities()
    assert set(files.abilities()) == set(ABILITY_NAMES)
    assert files.load("role_play", "train") == Doit(data_dir=str(published), part="full").load("role_play", "train")
