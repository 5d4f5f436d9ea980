"""TFDS: prepared once as ArrayRecord, read back by index, and TensorFlow stays outside."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynamics.data.sources import Files
from dynamics.data.tfds_builders import open_records, plain_row, prepare
from dynamics.errors import UserError

BROKEN = b"{oops\n"


def row(number: int, **more: object) -> dict:
    turns = [{"role": "system", "content": "短"}] if number % 2 else []
    turns += [{"role": "user", "content": f"{number}+1?"}, {"role": "assistant", "content": f"{number + 1}"}]
    return {"messages": turns, "type": "math", "idx": number if number % 3 else f"n{number}", **more}


@pytest.fixture
def source(tmp_path: Path) -> Files:
    """Twelve train records with numbers and texts as idx, two of format 1; a bad line; one test record; no valid."""
    rows = [row(n, answer=str(n + 1), **({"level": n, "tags": ["sum"]} if n > 7 else {})) for n in range(10)]
    rows += [row(n, question_format=1, choices=[f"{n + 1}", "no", "never"]) for n in (10, 11)]
    folder = tmp_path / "records" / "math"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in rows) + BROKEN)
    (folder / "test.jsonl").write_bytes(json.dumps(row(50)).encode())
    (folder / "valid.jsonl").write_bytes(BROKEN)
    return Files(data_dir=str(tmp_path / "records"), on_bad_record="skip")


def test_reading_back_gives_the_same_records_in_the_same_order(source, tmp_path):
    records = open_records(source, "math", "train", folder=tmp_path / "tfds")
    expected = source.load("math", "train").records
    assert len(records) == len(expected) == 12
    assert tuple(records) == expected
    assert [records[index] for index in (11, 0, -3, 5)] == [expected[index] for index in (11, 0, -3, 5)]
    assert records[2:9:3] == list(expected[2:9:3])
    with pytest.raises(IndexError, match="has 12 records; index 12 is outside"):
        records[12]
    assert tuple(open_records(source, "math", "test", folder=tmp_path / "tfds")) == source.load("math", "test").records


def test_rejected_lines_are_written_beside_the_prepared_files(source, tmp_path):
    made = prepare(source, "math", folder=tmp_path / "tfds")
    lines = (Path(made.data_dir) / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["train.jsonl", "valid.jsonl"]


def test_changed_records_get_files_of_their_own(source, tmp_path):
    before = open_records(source, "math", "train", folder=tmp_path / "tfds")
    path = Path(source.data_dir) / "math" / "train.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps(row(90)).encode())
    assert len(open_records(source, "math", "train", folder=tmp_path / "tfds")) == len(before) + 1


def test_a_missing_ability_or_split_is_named(source, tmp_path):
    with pytest.raises(UserError, match="files has no ability 'ethics'; it has math"):
        open_records(source, "ethics", "train", folder=tmp_path)
    with pytest.raises(UserError, match="there is no split 'dev'; allowed: train, valid, test"):
        open_records(source, "math", "dev", folder=tmp_path)
    with pytest.raises(UserError, match="files has no valid records of 'math'; prepared: "):
        open_records(source, "math", "valid", folder=tmp_path)


def test_rows_of_tfds_become_json_data():
    row = {"messages": {"role": [b"user"], "content": np.array([b"q"], dtype=object)}, "n": np.int64(3), "e": (b"",)}
    assert plain_row(row) == {"messages": [{"role": "user", "content": "q"}], "n": 3, "e": [""]}
    assert plain_row({"messages": {"role": [], "content": []}}) == {"messages": []}


# A builder of somebody else, in a package of its own, as tfds wants it.
OTHERS = """
import tensorflow_datasets as tfds

class Chats(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        text = tfds.features.Text()
        turns = tfds.features.Sequence({"from": text, "value": text})
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"conversations": turns}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(3):
            yield n, {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]}
"""
READ = """
import sys
sys.path.insert(0, sys.argv[1])
from others import chats
from dynamics.data.sources import Files
from dynamics.data.tfds_builders import from_tfds, open_records

builder = chats.Chats(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
records = list(from_tfds(builder, "train", ability="code"))
print(sorted(record.messages[-1].content for record in records), records[0].ability, records[0].source)
ours = open_records(Files(data_dir=sys.argv[2], on_bad_record="skip"), "math", "train", folder=sys.argv[1])
print(len(ours), ours[11].choices)
print([name for name in ("tensorflow", "seqio", "jax", "apache_beam") if name in sys.modules])
"""


def test_builders_are_written_and_read_without_tensorflow(source, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "__init__.py").touch()
    (tmp_path / "others" / "chats.py").write_text(OTHERS)
    command = [sys.executable, "-c", READ, str(tmp_path), source.data_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "prepar" not in line]
    assert lines == ["['a0', 'a1', 'a2'] code chats/1.0.0", "12 ('12', 'no', 'never')", "[]"]
