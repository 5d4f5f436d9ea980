"""The registered TFDS data sets: prepared from files, downloaded from a hub, built from a shell."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

import dynamics.tfds_datasets
from dynamics.data.catalogue import entry
from dynamics.data.doit import Doit
from dynamics.data.inputs import Input, pieces, read_input, read_piece, row_of, row_of_pair
from dynamics.data.sources import SPLITS, Rejected, read_jsonl
from dynamics.data.tfds_base import Config
from dynamics.data.tfds_builders import TfdsRecords, plain_row, prepared_pairs
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES
from tests.data.fake_hub import FakeHub, serving

ROOT = Path(__file__).resolve().parents[2]


def row(text: str, number: int, **more: Any) -> dict:
    turns = [{"role": "user", "content": f"{text} {number}？"}, {"role": "assistant", "content": f"答 {number}"}]
    return {"messages": turns, "idx": number, "question_format": 0, **more}


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """DoIT as it is published, with a line of math that is broken and one that comes again."""
    folder = tmp_path_factory.mktemp("doit")
    files = {"synthetic/40960/general_instruction_gpt4_41k.json": [row("s", n, type="alpaca") for n in range(3)]}
    for ability in ABILITY_NAMES:
        for place, many in (("1000", 2), ("full", 3), ("valid", 1), ("test", 2)):
            split = place if place in SPLITS else "train"
            rows = [row(f"{ability} {split}", n, type=ability) for n in range(many)]
            files[f"curated/{place}/{ability}_{place}.json"] = rows
    files["curated/1000/math_1000.json"] += [files["curated/1000/math_1000.json"][0], {"messages": []}]
    files["curated/1000/role_play_1000.json"][1]["question_format"] = 1
    files["curated/test/ceval_physician.json"] = [row("c", n, type="ceval_physician_fshot") for n in range(2)]
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(jsonl(*rows), encoding="utf-8")
    return folder


def prepared(name: str, manual: Path, folder: Path, **config: Any) -> Any:
    builder = tfds.builder(name, data_dir=folder)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual, **config))
    return builder


def rows_of(builder: Any, split: str) -> list[dict]:
    return [plain_row(one) for one in builder.as_data_source(split)]


@pytest.fixture(scope="module")
def curated(published, tmp_path_factory) -> Any:
    return prepared("doit/curated_1000", published, tmp_path_factory.mktemp("tfds"))


def test_doit_holds_the_records_of_its_source_in_the_same_order(published, curated):
    source = Doit(data_dir=str(published), on_bad_record="skip")
    again = TfdsRecords(data_dir=curated.data_dir)
    for split in SPLITS:
        expected = [record for ability in ABILITY_NAMES for record in source.load(ability, split).records]
        assert rows_of(curated, split) == [row_of(record) for record in expected]
        for ability in ABILITY_NAMES:
            assert again.load(ability, split).records == source.load(ability, split).records
    assert (again.abilities(), again.evaluated()) == (source.abilities(), ABILITY_NAMES)
    assert TfdsRecords(data_dir=f"{curated.data_dir}/").fingerprint() == again.fingerprint()
    with pytest.raises(UserError, match="has no ability 'maths'; it has biology"):
        again.records("maths", "train")


def test_rejected_lines_are_counted_and_written_beside(published, curated):
    found = [json.loads(line) for line in (Path(curated.data_dir) / "rejected.jsonl").read_text().splitlines()]
    expected = Doit(data_dir=str(published), on_bad_record="skip").load("math", "train").rejected
    assert [(one["file"], one["line"], one["reason"]) for one in found] == [
        (one.file, one.line, one.reason) for one in expected
    ]
    assert curated.info.metadata["rejected"] == len(found) == 2
    assert curated.info.metadata["counts"]["train"] == dict.fromkeys(ABILITY_NAMES, 2)


@pytest.mark.parametrize(
    ("config", "train", "test"), [("curated_full", 30, 20), ("synthetic", 3, 20), ("mixed", 33, 20), ("ceval", 0, 2)]
)
def test_each_configuration_of_doit_has_its_own_records(published, tmp_path, config, train, test):
    splits = prepared(f"doit/{config}", published, tmp_path).info.splits
    assert (splits["train"].num_examples if train else 0, splits["test"].num_examples) == (train, test)
    assert ("train" in splits) == bool(train)


def test_the_first_lines_may_be_bad_and_a_split_without_rows_is_left_out(tmp_path):
    bad = {"messages": []}
    (tmp_path / "code_train.jsonl").write_text(jsonl(bad, row("q", 0), bad))
    (tmp_path / "code_valid.jsonl").write_text(jsonl(bad))
    (tmp_path / "code_test.jsonl").write_text(jsonl(bad, row("t", 0)))
    builder = tfds.builder("jsonl_folder", config=Config(name="bad", folder=str(tmp_path)), data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    assert builder.info.metadata["counts"] == {"train": {"code": 1}, "test": {"code": 1}}
    found = [json.loads(line) for line in (Path(builder.data_dir) / "rejected.jsonl").read_text().splitlines()]
    places = [(Path(one["file"]).stem, one["line"]) for one in found]
    assert sorted(places) == [("code_test", 1), ("code_train", 1), ("code_train", 3), ("code_valid", 1)]
    assert places.index(("code_train", 3)) == places.index(("code_train", 1)) + 1
    error = Config(name="strict", folder=str(tmp_path), on_bad_record="error")
    with pytest.raises(UserError, match=r"code_train.jsonl:1: messages is a list of 0"):
        tfds.builder("jsonl_folder", config=error, data_dir=tmp_path / "tfds").download_and_prepare()


SETS = {
    "conifer": ("train_sft.jsonl", {"prompt": "q", "messages": row("q", 0)["messages"], "type": "easy"}),
    "alpaca": ("alpaca_data.jsonl", {"instruction": "add", "input": "1 1", "output": "2"}),
    "dolly": (
        "databricks-dolly-15k.jsonl",
        {"instruction": "who?", "context": "he", "response": "he", "category": "closed_qa"},
    ),
    "sharegpt": ("sharegpt.jsonl", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    "belle": ("Belle_open_source_0.5M.json", {"instruction": "Human:问\nAssistant:", "input": "", "output": "答"}),
    "ultrachat": ("train_sft.jsonl", {"prompt": "q", "messages": row("u", 1)["messages"], "prompt_id": "x"}),
    "ultrafeedback": (
        "train_prefs.jsonl",
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_the_rows_of_a_set_are_what_the_catalogue_reads(name, tmp_path):
    file, one = SETS[name]
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / file).write_text(
        jsonl(one, {**one, "output": 3, "response": 3, "messages": 3, "chosen": 3, "conversations": 3})
    )
    builder = prepared(name, manual, tmp_path)
    own = shutil.copytree(manual, tmp_path / "own" / name)  # manual_dir may have any name, an entry's folder its own
    if name == "ultrafeedback":
        loaded = entry(name).pairs(own, "train")
        expected = [row_of_pair(pair, name) for pair in loaded.pairs]
        assert tuple(prepared_pairs(builder.data_dir, "train")) == loaded.pairs
        with pytest.raises(UserError, match="not prepared by a builder of records"):
            TfdsRecords(data_dir=builder.data_dir).abilities()
    else:
        loaded = entry(name).read(own, "train")
        expected = [row_of(record) for record in loaded.records]
    assert rows_of(builder, "train") == expected
    assert len(expected) == 1
    written = (Path(builder.data_dir) / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in written] == [bad.reason for bad in loaded.rejected]
    assert len(written) == 1


def test_a_folder_of_json_lines_needs_a_name_only(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "math_train.jsonl").write_text(jsonl(row("q", 0), row("q", 1)))
    builder = tfds.builder("jsonl_folder", config=Config(name="mine", folder=str(tmp_path / "mine")), data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.full_name == "jsonl_folder/mine/1.0.0"
    assert (
        tuple(TfdsRecords(data_dir=builder.data_dir).records("math", "train"))
        == read_jsonl(tmp_path / "mine" / "math_train.jsonl", ability="math", source="math_train.jsonl").records
    )


def test_other_files_are_not_taken_for_the_prepared_ones(published, tmp_path):
    manual = tmp_path / "manual"
    shutil.copytree(published, manual)
    prepared("doit/synthetic", manual, tmp_path)
    prepared("doit/synthetic", manual, tmp_path)  # the same files: nothing to do
    (manual / "curated" / "valid" / "math_valid.json").write_text(jsonl(row("other", 0, type="math")))
    with pytest.raises(
        UserError, match=r"prepared from other files than .*\(different: curated/valid/math_valid.json\)"
    ):
        prepared("doit/synthetic", manual, tmp_path)
    anew = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    assert rows_of(prepared("doit/synthetic", manual, tmp_path, download_mode=anew), "valid")


def test_without_files_the_instructions_are_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"manual_dir .* is no folder; Copy the data set ChiyuSONG"):
        prepared("doit/synthetic", tmp_path / "none", tmp_path)
    (tmp_path / "other.txt").touch()
    with pytest.raises(UserError, match="has no files of conifer; Copy into manual_dir: "):
        prepared("conifer", tmp_path, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to download them; Copy into manual_dir: "):
        tfds.builder("alpaca", data_dir=tmp_path).download_and_prepare()
    with pytest.raises(UserError, match="jsonl_folder has nothing to download; Put files of records"):
        tfds.builder("jsonl_folder", data_dir=tmp_path).download_and_prepare()


READ = """
import sys
import tensorflow_datasets as tfds
import dynamics.tfds_datasets
rows = tfds.data_source("doit/curated_1000", split="train", data_dir=sys.argv[1])
loaded = [name for name in ("tensorflow", "seqio", "jax", "apache_beam") if name in sys.modules]
print(len(rows), rows[3]["id"].decode(), loaded)
"""


def test_rows_are_read_by_name_and_index_without_tensorflow(curated):
    command = [sys.executable, "-c", READ, str(curated.data_dir_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"20 {rows_of(curated, 'train')[3]['id']} []\n", done.stderr[-2000:]


def build(folder: Path, *arguments: str, **environment: str) -> str:
    """`tfds build` in a folder; its output."""
    command = [sys.executable, "-m", "dynamics.data.tfds_command", "build", "--config", "curated_1000", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_tfds_build_downloads_registers_and_checks_checksums(published, curated, tmp_path):
    folder = tmp_path / "doit"
    shutil.copytree(Path(dynamics.tfds_datasets.__file__).parent / "doit", folder)
    names = sorted(path.relative_to(published).as_posix() for path in published.rglob("*.json"))
    hub = FakeHub(
        repository="ChiyuSONG/dynamics-of-instruction-tuning",
        files={name: (published / name).read_bytes() for name in names},
    )
    with serving(hub):
        told = build(folder, "--register_checksums", "--data_dir", str(tmp_path / "one"), HF_ENDPOINT=hub.url)
        assert told.startswith("0 "), told[-3000:]
        lines = [line.split("\t") for line in (folder / "checksums.tsv").read_text().splitlines()]
        wanted = [name for name in names if "synthetic" not in name and "full" not in name]
        assert [line[0].partition("/resolve/")[2].partition("/")[2] for line in lines] == wanted
        assert {line[0] for line in lines if len(line[2]) == 64 and int(line[1]) > 0} == {line[0] for line in lines}
        # Downloaded, in another process: the bytes of what was prepared here from manual files.
        for path in Path(curated.data_dir).glob("*.array_record*"):
            other = tmp_path / "one" / "doit" / "curated_1000" / "1.0.0" / path.name
            assert other.read_bytes() == path.read_bytes()
        hub.files["curated/valid/math_valid.json"] += b" \n"
        told = build(folder, "--force_checksums_validation", "--data_dir", str(tmp_path / "two"), HF_ENDPOINT=hub.url)
        assert "NonMatchingChecksumError" in told


def test_tfds_build_takes_files_copied_by_hand(published, curated, tmp_path):
    arguments = ("--manual_dir", str(published), "--data_dir", str(tmp_path), "--imports", "dynamics.tfds_datasets")
    told = build(tmp_path, "doit", *arguments, PYTHONHASHSEED="7")
    assert told.startswith("0 "), told[-3000:]
    for path in Path(curated.data_dir).glob("*.array_record*"):
        assert (tmp_path / "doit" / "curated_1000" / "1.0.0" / path.name).read_bytes() == path.read_bytes()


LINES = [
    jsonl(row("一", 0)),
    "\n",
    '{"broken\n',
    jsonl(row("二", 1)),
    "  \n",
    jsonl(row("一", 0)),
    "\ufeff{}\n",
    "x" * 30,
]


@pytest.mark.parametrize("size", [1, 7, 64, 150, 10_000])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_pieces_of_a_file_give_its_lines_once(tmp_path, size, ending):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(LINES) + ending, encoding="utf-8")
    one = Input(split="train", ability="math", path=str(path), source="x")
    cut = pieces([one], size=size)
    read = [read_piece(piece) for piece in cut]
    starts = [sum(before.num_lines for before in read[:number]) for number in range(len(read))]
    lines = [start + parsed.line for start, piece in zip(starts, read, strict=True) for parsed in piece.parsed]
    assert lines == [1, 3, 4, 6, 7, 8]
    good = [parsed.row for piece in read for parsed in piece.parsed if parsed.row is not None]
    whole = list(read_input(one))
    assert good[:2] == [found for found in whole if not isinstance(found, Rejected)]
    assert [found.line for found in whole if isinstance(found, Rejected)] == [3, 6, 7, 8]
    assert len(cut) == (1 if size == 10_000 else -(-path.stat().st_size // size))
