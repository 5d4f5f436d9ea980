"""The catalogue: every fact has its certainty, every split can be read, and the docs say what it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamics.data.catalogue import CATALOGUE, describe, entry, markdown_table, size_text
from dynamics.data.doit import Doit
from dynamics.data.entry import FACTS
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, RecordError

ROOT = Path(__file__).resolve().parents[2]


def _write(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _doit_row(text: str, **fields: object) -> dict:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}]
    return {"messages": turns, "question_format": 0, **fields}


@pytest.fixture
def doit(tmp_path: Path) -> Path:
    """The published layout: one record a file."""
    for ability in ABILITY_NAMES:
        for part in ("1000", "full", "valid", "test"):
            kind = "role-play" if ability == "role_play" else ability
            _write(tmp_path / f"doit/curated/{part}/{ability}_{part}.json", _doit_row(f"{ability} {part}", type=kind))
    for name in ("physician", "teacher_qualification", "urban_and_rural_planner"):
        _write(tmp_path / f"doit/curated/test/ceval_{name}.json", _doit_row(name, type=f"ceval_{name}_fshot"))
    _write(tmp_path / "doit/synthetic/40960/alpaca_gpt4.json", _doit_row("synthetic"), _doit_row("two"))
    return tmp_path


@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)
def test_every_fact_says_how_certain_it_is(one):
    assert set(one.certainty) == set(FACTS)
    for fact in ("num_records", "num_bytes"):
        assert (getattr(one, fact) is None) == (one.certainty[fact] == "unknown")
    assert one.certainty["licence"] in ("read", "card")
    assert one.licence
    assert one.title
    json.dumps(describe(one))


def test_names_are_distinct_and_the_asked_ones_are_there():
    names = [one.name for one in CATALOGUE]
    assert len(set(names)) == len(names)
    asked = {
        "doit",
        "conifer",
        "ultrafeedback",
        "alpaca",
        "dolly",
        "sharegpt",
        "belle",
        "ultrachat",
        "cmmlu",
        "agieval",
    }
    assert asked | {"ceval"} <= set(names)


@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)
def test_what_is_fetched_is_what_the_splits_read(one):
    """A file of the repository that fits `files` lies where a split or the archive finds it."""
    fetched = [pattern.replace("*", "x") for pattern in one.files]
    assert all(one.wants(path) for path in fetched)
    assert not one.wants("README.md")
    local = [one.local(path) for path in fetched]
    assert all(not path.startswith("/") for path in local)


def test_a_wrong_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"no entry 'alpacca' \(did you mean 'alpaca'\?\); it has doit, conifer"):
        entry("alpacca")


def test_doit_reads_as_its_source_does(doit: Path):
    one = entry("doit")
    source = Doit(data_dir=str(doit / "doit"), part="full")
    for split, ours in (("full", "train"), ("valid", "valid"), ("test", "test")):
        read = one.read(doit, split).records
        loaded = [record for ability in source.evaluated() for record in source.load(ability, ours).records]
        assert {record.id for record in read} == {record.id for record in loaded}
        assert {record.ability for record in read} == {record.ability for record in loaded}
    assert {record.ability for record in one.read(doit, "synthetic").records} == {"synthetic"}
    assert len(one.read(doit, "1000").records) == 10
    assert "ceval_physician" in {record.ability for record in one.read(doit, "test").records}


def test_the_folder_may_be_the_entrys_own(doit: Path):
    one = entry("doit")
    assert one.read(doit / "doit", "full") == one.read(doit, "full")
    assert one.read(doit, "full").records[0].source == "doit/curated/full/biology_full.json"


def test_a_folder_is_read_only_by_the_set_that_it_is_of(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    _write(tmp_path / "ultrachat/train_sft.jsonl", {"prompt": "Hi", "messages": turns})
    conifer, ultrachat = entry("conifer"), entry("ultrachat")
    folder = tmp_path / "ultrachat"
    assert len(ultrachat.read(folder, "train").records) == 1  # by its name
    assert not conifer.is_there(folder)
    with pytest.raises(UserError, match=r"ultrachat/conifer has no train files of conifer"):
        conifer.read(folder, "train")
    other = folder.rename(tmp_path / "mine")
    assert not ultrachat.is_there(other)
    assert len(conifer.found(other, "train", given=True)) == 1
    (other / "fetched.json").write_text(json.dumps({"entry": "ultrachat"}), encoding="utf-8")
    assert ultrachat.is_there(other)
    assert not conifer.found(other, "train", given=True)
    other.rename(tmp_path / "conifer")
    assert not conifer.is_there(tmp_path), "fetched as another"


def test_a_folder_with_files_that_no_other_set_has_is_of_the_set(doit: Path):
    home = (doit / "doit").rename(doit / "mine")
    assert entry("doit").home(home) == home
    _write(doit / "b/databricks-dolly-15k.jsonl", {"instruction": "a", "response": "b"})
    assert entry("dolly").is_there(doit / "b")


def test_the_neighbours_of_a_set_are_not_its_files(tmp_path: Path):
    _write(tmp_path / "cmmlu/dev/agronomy.csv", {})
    _write(tmp_path / "cmmlu/test/agronomy.csv", {})
    assert entry("cmmlu").is_there(tmp_path)
    assert not entry("ceval").is_there(tmp_path)
    assert not entry("ceval").is_there(tmp_path / "cmmlu")


def _rename(home: Path, old: str, new: str) -> None:
    (home / old).rename(home / new)


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda home: (home / "curated/full/math_full.json").unlink(), r"part 'full': curated/full/math_full.json"),
        (lambda home: (home / "curated/test/code_test.json").unlink(), r"lacks 1 .*: curated/test/code_test.json"),
        (
            lambda home: _rename(home, "curated/full/math_full.json", "curated/full/maths_full.json"),
            r"curated/full/maths_full.json in .* is of none of the ten abilities",
        ),
        (
            lambda home: _write(home / "curated/1000/role-play_1000.json", _doit_row("again")),
            r"train records of 'role_play' twice",
        ),
        (lambda home: _write(home / "synthetic/40960/b.json", _doit_row("again")), r"2 synthetic files"),
    ],
)
def test_doit_is_refused_as_its_source_refuses_it(doit: Path, break_: Callable[[Path], None], message: str):
    one = entry("doit")
    one.check(doit)
    shutil.rmtree(doit / "doit/curated/1000") if "full" in message else None
    one.check(doit)  # a part that is not there at all is not asked for
    break_(doit / "doit")
    with pytest.raises(UserError, match=message):
        one.check(doit)


def test_hidden_files_and_our_own_record_are_no_data(doit: Path):
    (doit / "doit/fetched.json").write_text("{}", encoding="utf-8")
    _write(doit / "doit/curated/full/.cache/x_full.json", {})
    assert len(entry("doit").found(doit, "full")) == 10


def test_a_set_in_several_files_is_read_in_the_order_of_their_names(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for index in (1, 0):
        row = {"prompt": "Hi", "messages": [*turns[:1], {"role": "assistant", "content": f"Hello {index}"}]}
        _write(tmp_path / f"ultrachat/data/train_sft-0000{index}-of-00002.jsonl", row)
    records = entry("ultrachat").read(tmp_path, "train").records
    assert [record.messages[1].content for record in records] == ["Hello 0", "Hello 1"]
    assert {record.ability for record in records} == {"ultrachat"}


def test_bad_rows_are_counted_or_an_error(tmp_path: Path):
    _write(tmp_path / "alpaca/alpaca_data.json", {"instruction": "Add", "input": "", "output": ""})
    assert len(entry("alpaca").read(tmp_path, "train").rejected) == 1
    with pytest.raises(RecordError, match=r"alpaca_data\.json:1: output is empty"):
        entry("alpaca").read(tmp_path, "train", on_bad_record="error")


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no split 'valid'; it has train"):
        entry("conifer").read(tmp_path, "valid")
    with pytest.raises(
        UserError, match=r"has no train files of conifer .*; run dynamics data fetch conifer --data-dir"
    ):
        entry("conifer").read(tmp_path, "train")
    with pytest.raises(UserError, match=r"holds preferences, not records; read it with pairs\(\)"):
        entry("ultrafeedback").read(tmp_path, "train")
    with pytest.raises(UserError, match=r"holds benchmark, not records; read it with dynamics\.eval\.benchmarks"):
        entry("cmmlu").read(tmp_path, "test")
    with pytest.raises(UserError, match=r"holds instructions, not preference pairs; read it with read\(\)"):
        entry("alpaca").pairs(tmp_path, "train")


def test_pairs_of_an_entry(tmp_path: Path):
    prompt = {"role": "user", "content": "Why?"}
    sides = {name: [prompt, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    _write(tmp_path / "ultrafeedback/data/test_prefs-00000-of-00001.jsonl", sides, sides)
    loaded = entry("ultrafeedback").pairs(tmp_path, "test")
    assert [pair.chosen for pair in loaded.pairs] == ["chosen"]
    assert len(loaded.rejected) == 1


def test_sizes_are_short():
    assert [size_text(size) for size in (None, 500, 2_461_504, 31_000_000, 1_620_000_000)] == [
        "?",
        "0.5 kB",
        "2.46 MB",
        "31 MB",
        "1.62 GB",
    ]


def test_the_guide_has_the_table_of_the_catalogue():
    """Write it anew with: python -c "from dynamics.data.catalogue import markdown_table; print(markdown_table())"."""
    guide = (ROOT / "docs/guide/catalogue.md").read_text(encoding="utf-8")
    start, end = "<!-- table of the catalogue -->\n", "<!-- end of the table -->"
    assert guide.split(start)[1].split(end)[0].strip() == markdown_table().strip()
    assert all(f"`{one.name}`" in guide for one in CATALOGUE)


@pytest.mark.shared_data
def test_the_real_benchmarks_have_the_stated_files(shared_data: Path):
    counts = {
        name: {s: len(entry(name).found(shared_data, s)) for s in entry(name).splits} for name in ("cmmlu", "agieval")
    }
    assert counts == {"cmmlu": {"dev": 67, "test": 67}, "agieval": {"test": 7}}
