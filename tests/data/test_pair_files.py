"""Preference pairs of files: layouts, splits by hash, what is refused and counted."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from dynamics import config
from dynamics.ability import item_of
from dynamics.data import sample_sets
from dynamics.data.inputs import pair_row
from dynamics.data.pair_files import PairFiles, PublishedPairs, split_of_prompt
from dynamics.data.practice.source import Practice
from dynamics.data.sources import SPLITS, Files, write_jsonl
from dynamics.errors import UserError
from dynamics.pair import parse_pair
from dynamics.record import RecordError, Turn


def _row(number: int, **fields: object) -> dict:
    return {"prompt": f"Question {number}?", "chosen": f"good {number}", "rejected": f"bad {number}", **fields}


def _write(path: Path, rows: list[dict]) -> None:
    write_jsonl(path, rows)


@pytest.fixture
def one_file(tmp_path: Path) -> PairFiles:
    _write(tmp_path / "all.json", [_row(number) for number in range(400)])
    return PairFiles(data_dir=str(tmp_path), files=(("en", "all.json"),))


def test_a_file_without_splits_is_split_by_the_hash_of_the_prompt(one_file: PairFiles):
    splits = {split: one_file.pairs("en", split).pairs for split in SPLITS}
    assert sum(map(len, splits.values())) == 400
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 322, "valid": 39, "test": 39}
    for split, pairs in splits.items():
        shares = {"valid_share": 0.1, "test_share": 0.1, "seed": 0}
        assert all(split_of_prompt(pair.prompt, **shares) == split for pair in pairs)


def test_another_seed_splits_otherwise(one_file: PairFiles):
    other = dataclasses.replace(one_file, split_seed=1)
    held = [{pair.id for pair in source.pairs("en", "test").pairs} for source in (one_file, other)]
    assert held[0]
    assert held[1]
    assert len(held[0] & held[1]) < min(map(len, held)) / 2
    shares = {"valid_share": 0.1, "test_share": 0.1, "seed": 1}
    assert all(split_of_prompt(pair.prompt, **shares) == "test" for pair in other.pairs("en", "test").pairs)


def test_pairs_of_one_prompt_stay_in_one_split(tmp_path: Path):
    rows = [_row(number, rejected=f"bad {other}") for number in range(60) for other in ("a", "b")]
    _write(tmp_path / "all.json", rows)
    source = PairFiles(data_dir=str(tmp_path), files=(("en", "all.json"),))
    prompts = [{pair.prompt for pair in source.pairs("en", split).pairs} for split in SPLITS]
    assert sum(map(len, prompts)) == 60


def test_a_pair_keeps_its_split_when_the_file_grows_or_is_reordered(one_file: PairFiles):
    before = {pair.id: split for split in SPLITS for pair in one_file.pairs("en", split).pairs}
    path = Path(one_file.data_dir or "") / "all.json"
    _write(path, [_row(number) for number in reversed(range(450))])
    after = {pair.id: split for split in SPLITS for pair in one_file.pairs("en", split).pairs}
    assert before.items() <= after.items()


def test_the_fingerprint_is_of_the_content_and_of_the_split_where_there_is_one(one_file: PairFiles, tmp_path: Path):
    other = PairFiles(data_dir=one_file.data_dir, files=one_file.files, valid_share=0.2)
    assert other.fingerprint() != one_file.fingerprint()
    _write(tmp_path / "own" / "en" / "train.jsonl", [_row(1)])
    own = [PairFiles(data_dir=str(tmp_path / "own"), valid_share=share) for share in (0.1, 0.2)]
    assert own[0].fingerprint() == own[1].fingerprint()
    before = own[0].fingerprint()
    _write(tmp_path / "own" / "en" / "train.jsonl", [_row(2), _row(3)])
    assert own[0].fingerprint() != before


@pytest.mark.parametrize("layout", ["{part}/{split}.jsonl", "{part}_{split}.jsonl", "named"])
def test_files_of_one_split_each_are_read_as_they_are(tmp_path: Path, layout: str):
    files = (("en", "x/en-{split}.json"), ("zh", "x/zh-{split}.json")) if layout == "named" else ()
    for part, shift in (("en", 0), ("zh", 100)):
        for index, split in enumerate(SPLITS[:2]):
            name = f"x/{part}-{split}.json" if layout == "named" else layout.format(part=part, split=split)
            _write(tmp_path / name, [_row(shift + 10 * index + number) for number in range(3 + index)])
    source = PairFiles(data_dir=str(tmp_path), files=files)
    assert source.paired() == source.abilities() == ("en", "zh")
    assert source.evaluated() == ()
    counts = {split: len(source.pairs("zh", split).pairs) for split in SPLITS}
    assert counts == {"train": 3, "valid": 4, "test": 0}
    assert source.pairs("zh", "train").pairs[0].prompt[0].content == "Question 100?"


def test_bad_rows_are_errors_or_counted_and_repeats_are_counted(tmp_path: Path):
    rows = [_row(1), _row(2, rejected="good 2"), _row(1, weight=2.0), _row(3)]
    _write(tmp_path / "en_train.jsonl", rows)
    with pytest.raises(UserError, match=r"en_train\.jsonl:2: rejected is the chosen reply again"):
        PairFiles(data_dir=str(tmp_path)).pairs("en", "train")
    loaded = PairFiles(data_dir=str(tmp_path), on_bad_record="skip").pairs("en", "train")
    assert [pair.chosen for pair in loaded.pairs] == ["good 1", "good 3"]
    assert [(one.line, one.reason) for one in loaded.rejected] == [
        (2, "rejected is the chosen reply again; nothing can be preferred"),
        (3, "has the content of line 1 again"),
    ]


def test_rows_that_give_no_pair_count_once_in_a_file_without_splits(tmp_path: Path):
    _write(tmp_path / "all.json", [_row(number) for number in range(20)] + [{"prompt": "?"}])
    source = PairFiles(data_dir=str(tmp_path), files=(("en", "all.json"),), on_bad_record="skip")
    assert [len(source.pairs("en", split).rejected) for split in SPLITS] == [1, 0, 0]


def test_chosen_replies_are_records_to_tune_on_first(tmp_path: Path):
    rows = [
        _row(1),
        _row(1, rejected="worse"),
        {"prompt": "Why?", "completion": "No.", "label": False},
        {"prompt": "Why?", "completion": "So.", "label": True},
    ]
    _write(tmp_path / "en_train.jsonl", rows)
    loaded = PairFiles(data_dir=str(tmp_path)).load("en", "train")
    assert [record.messages[-1].content for record in loaded.records] == ["good 1", "So."]
    assert {record.ability for record in loaded.records} == {"en"}
    assert [one.reason for one in loaded.rejected] == [
        "has the prompt and chosen reply of another pair",
        "has no chosen reply",
    ]
    assert list(PairFiles(data_dir=str(tmp_path)).corpus()) == ["Question 1?\ngood 1", "Why?\nSo."]


def test_held_out_pairs_are_questions_where_they_are_asked(tmp_path: Path):
    for split in ("train", "valid"):
        _write(tmp_path / f"en_{split}.jsonl", [_row(1), {"prompt": "Why?", "completion": "So.", "label": True}])
    plain = PairFiles(data_dir=str(tmp_path))
    asked = PairFiles(data_dir=str(tmp_path), asked=True)
    assert (plain.evaluated(), asked.evaluated()) == ((), ("en",))
    assert asked.load("en", "train") == plain.load("en", "train")
    loaded = asked.load("en", "valid")
    assert [(item_of(record).kind, item_of(record).options) for record in loaded.records] == [
        ("perplexity", ("good 1", "bad 1"))
    ]
    assert [one.reason for one in loaded.rejected] == ["has one reply: nothing to tell it from"]
    assert asked.fingerprint() != plain.fingerprint()
    assert asked.corpus_fingerprint() == plain.corpus_fingerprint()


def test_weights_and_judgements_are_read(tmp_path: Path):
    rows = [_row(1, weight=0.5), {"prompt": "Why?", "completion": "No.", "label": False}]
    _write(tmp_path / "en_train.jsonl", rows)
    weighted, judged = PairFiles(data_dir=str(tmp_path)).pairs("en", "train").pairs
    assert weighted.weight == 0.5
    assert (judged.chosen, judged.rejected, judged.is_full) == (None, "No.", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_share": 0.6, "test_share": 0.4}, "leaves nothing to train on"),
        ({"valid_share": -0.1}, "is negative"),
        ({"files": (("en", "a.json"), ("en", "b.json"))}, "names 'en' twice"),
        ({"files": (("", "a.json"),)}, "names a part ''; give it a name that is not empty"),
        ({"files": (("en", "a.json"), ("a/b", "b.json"))}, "names a part 'a/b'; .* holds no '/'"),
        ({"files": ((".", "a.json"),)}, "names a part '.'"),
        ({"files": (("..", "a.json"),)}, "names a part '..'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        PairFiles(**settings)


def test_what_is_missing_is_named(tmp_path: Path, one_file: PairFiles):
    with pytest.raises(UserError, match=r"has no file no\.json of the pairs 'en'; give the folder that holds it"):
        PairFiles(data_dir=str(tmp_path), files=(("en", "no.json"),)).pairs("en", "train")
    with pytest.raises(UserError, match=r"has no file no-\{split\}\.json"):
        PairFiles(data_dir=str(tmp_path), files=(("en", "no-{split}.json"),)).pairs("en", "train")
    with pytest.raises(UserError, match=r"\(data_dir\) does not exist; give it with --data-dir"):
        PairFiles(data_dir=str(tmp_path / "no"), files=(("en", "no.json"),)).pairs("en", "train")
    with pytest.raises(UserError, match="has no pairs of 'fr'; it has en"):
        one_file.pairs("fr", "train")
    with pytest.raises(UserError, match="there is no split 'dev'"):
        one_file.pairs("en", "dev")


def test_sources_of_records_have_no_pairs():
    assert Files(data_dir="x").paired() == ()
    with pytest.raises(UserError, match="the source 'files' has no preference pairs"):
        Files(data_dir="x").pairs("math", "train")


def test_the_folder_is_found_as_that_of_the_sample_sets_is(one_file: PairFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(sample_sets.FOLDER_VARIABLE, str(one_file.data_dir))
    source = PairFiles(files=one_file.files)
    assert source.pairs("en", "test") == one_file.pairs("en", "test")
    assert source.fingerprint() == one_file.fingerprint()


def test_a_setting_survives_json(one_file: PairFiles):
    for source in (one_file, PublishedPairs(data_dir="d"), Practice()):
        assert config.from_plain(json.loads(json.dumps(config.to_plain(source)))) == source


# --- the catalogue -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> PublishedPairs:
    home = tmp_path / "ultrafeedback"
    _write(home / "train_prefs.jsonl", [*(_row(number) for number in range(200)), _row(7)])
    _write(home / "test_prefs.jsonl", [_row(1000 + number) for number in range(5)])
    return PublishedPairs(data_dir=str(tmp_path))


def test_valid_is_drawn_from_train_where_none_is_published(published: PublishedPairs):
    counts = {split: len(published.pairs("ultrafeedback", split).pairs) for split in SPLITS}
    assert counts == {"train": 185, "valid": 15, "test": 5}
    assert len(published.pairs("ultrafeedback", "train").rejected) == 1
    assert published.pairs("ultrafeedback", "test").pairs[0].source == "ultrafeedback/test_prefs.jsonl"


def test_judgements_are_refused_in_a_set_that_promises_pairs(published: PublishedPairs, tmp_path: Path):
    path = tmp_path / "ultrafeedback" / "test_prefs.jsonl"
    _write(path, [_row(1), {"prompt": "Why?", "completion": "No.", "label": False}])
    loaded = published.pairs("ultrafeedback", "test")
    assert len(loaded.pairs) == 1
    assert [one.reason for one in loaded.rejected] == ["judges one reply; here every row has 'chosen' and 'rejected'"]


def test_the_fingerprint_of_a_published_set_is_of_its_files_and_shares(published: PublishedPairs, tmp_path: Path):
    before = published.fingerprint()
    assert PublishedPairs(data_dir=published.data_dir, valid_share=0.2).fingerprint() != before
    _write(tmp_path / "ultrafeedback" / "test_prefs.jsonl", [_row(2000)])
    assert published.fingerprint() != before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row(1, weight=2), "f:1: weight is 2.0; a prepared data set keeps no weights, use PairFiles"),
        ({"prompt": "Why?", "completion": "No.", "label": False}, "f:1: judges one reply"),
    ],
)
def test_what_prepared_sets_cannot_hold_is_refused(row: dict, message: str):
    with pytest.raises(RecordError, match=message):
        pair_row(row, "f:1", "ultrafeedback", "s")


def test_only_sets_of_preferences_are_taken(tmp_path: Path):
    with pytest.raises(UserError, match=r"PublishedPairs\(entry='alpaca'\): it holds instructions"):
        PublishedPairs(entry="alpaca")
    with pytest.raises(UserError, match="run dynamics data fetch ultrafeedback"):
        PublishedPairs(data_dir=str(tmp_path)).pairs("ultrafeedback", "train")


# --- real pairs ----------------------------------------------------------------------------------------------------

DEMO = (("en", "sft_dpo_demo/dpo_en_demo.json"), ("zh", "sft_dpo_demo/dpo_zh_demo.json"))


@pytest.mark.shared_data
def test_real_pairs_are_read_completely(shared_data: Path):
    source = PairFiles(data_dir=str(shared_data), files=DEMO)
    loaded = {part: [source.pairs(part, split) for split in SPLITS] for part in source.paired()}
    assert {part: [len(one.pairs) for one in some] for part, some in loaded.items()} == {
        "en": [236, 25, 34],
        "zh": [237, 29, 23],
    }
    rejected = [one for some in loaded.values() for part in some for one in part.rejected]
    assert Counter(one.reason.partition(" line")[0] for one in rejected) == {"has the content of": 16}
    prompts = {part: [pair.prompt for one in some for pair in one.pairs] for part, some in loaded.items()}
    assert Counter(map(len, prompts["en"])) == {1: 112, 2: 80, 3: 1, 5: 55, 7: 45, 9: 1, 13: 1}
    assert Counter(map(len, prompts["zh"])) == {1: 227, 2: 62}
    assert [sum(prompt[0].role == "system" for prompt in prompts[part]) for part in ("en", "zh")] == [80, 62]
    assert [sum(map(_is_chinese, prompts[part])) > len(prompts[part]) / 2 for part in ("en", "zh")] == [False, True]


@pytest.mark.shared_data
def test_real_pairs_in_the_shape_of_hh_are_the_same_pairs(shared_data: Path):
    source = PairFiles(data_dir=str(shared_data), files=DEMO)
    pairs = [pair for part in source.paired() for pair in source.pairs(part, "test").pairs]
    pairs = [pair for pair in pairs if pair.prompt[0].role == "user"]
    assert len(pairs) > 30
    for pair in pairs:
        row = {"chosen": _hh(pair.prompt, pair.chosen), "rejected": _hh(pair.prompt, pair.rejected)}
        assert parse_pair(row, where="hh.jsonl:1").id == pair.id


def _hh(prompt: tuple[Turn, ...], reply: str | None) -> str:
    turns = [*prompt, Turn(role="assistant", content=reply or "")]
    return "".join(f"\n\n{'Human' if turn.role == 'user' else 'Assistant'}: {turn.content}" for turn in turns)


def _is_chinese(prompt: tuple[Turn, ...]) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in prompt[-1].content)
