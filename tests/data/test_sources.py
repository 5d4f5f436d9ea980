"""Sources: files of any shape and layout in, records and counted rejections out, one clear line for what is wrong."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamics.config import from_json, to_json
from dynamics.data.inputs import Input, read_input
from dynamics.data.lines import MAX_LINE_BYTES, read_lines
from dynamics.data.sources import Files, Loaded, Rejected, plain_text, read_jsonl, write_jsonl, write_rejected
from dynamics.errors import UserError


def row(number: int, ability: str = "math") -> dict:
    turns = [{"role": "user", "content": f"{number}+1?"}, {"role": "assistant", "content": f"答案：{number + 1}"}]
    return {"messages": turns, "type": ability, "idx": number}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in rows)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def problem(path: Path, **arguments) -> str:
    """The message of the UserError, with the folder left out."""
    with pytest.raises(UserError) as caught:
        read_jsonl(path, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


THREE = [row(0), row(1), row(2)]
FORMS = {
    "lines": lines(*THREE),
    "lines without a last newline": lines(*THREE)[:-1],
    "lines of Windows": lines(*THREE).replace(b"\n", b"\r\n"),
    "blank lines between": lines(*THREE).replace(b"\n", b"\n\n"),
    "a byte-order mark": b"\xef\xbb\xbf" + lines(*THREE),
    "a list": json.dumps(THREE).encode(),
    "an indented list": json.dumps(THREE, indent=2, ensure_ascii=False).encode(),
    "a list after a mark": b"\xef\xbb\xbf\n" + json.dumps(THREE).encode() + b"\n",
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_records(tmp_path, form, zipped):
    path = write(tmp_path / "x.json", gzip.compress(FORMS[form]) if zipped else FORMS[form])
    loaded = read_jsonl(path)
    assert [record.idx for record in loaded.records] == [0, 1, 2]
    assert loaded.rejected == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
def test_writing_then_reading_is_the_identity(tmp_path, numbers):
    first = read_jsonl(write(tmp_path / "a.jsonl", lines(*map(row, numbers))))
    assert write_jsonl(tmp_path / "b.jsonl", [record.to_dict() for record in first.records]) == len(numbers)
    assert read_jsonl(tmp_path / "b.jsonl") == first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(["good", "blank", "broken", "wrong", "again"]), min_size=1, max_size=12))
def test_records_and_rejections_add_up_to_the_lines(tmp_path, kinds):
    bad = {"blank": b"\n", "broken": b"{oops\n", "wrong": b'{"messages": []}\n', "again": lines(row(0))}
    body = lines(row(0)) + b"".join(bad.get(kind, lines(row(n))) for n, kind in enumerate(kinds, 1))
    loaded = read_jsonl(write(tmp_path / "x.jsonl", body), on_bad_record="skip")
    assert len(loaded.records) == 1 + kinds.count("good")
    assert len(loaded.rejected) == sum(kind not in ("good", "blank") for kind in kinds)
    assert [r.line for r in loaded.rejected] == [n for n, kind in enumerate(kinds, 2) if kind not in ("good", "blank")]


def test_alpaca_and_sharegpt_lines_can_stand_in_one_file(tmp_path):
    alpaca = {"instruction": "Add", "input": "1 1", "output": "2"}
    chat = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    loaded = read_jsonl(write(tmp_path / "x.jsonl", lines(alpaca, chat)), ability="code", source="mine")
    assert [(record.ability, record.source) for record in loaded.records] == [("code", "mine")] * 2


def test_the_first_bad_line_is_named_with_file_line_and_field(tmp_path):
    bad = row(1)
    bad["messages"][1]["role"] = "bot"
    path = write(tmp_path / "x.jsonl", lines(row(0), bad))
    assert problem(path) == "x.jsonl:2: messages[1].role is 'bot'; allowed: system, user, assistant"


def test_skipping_gives_the_reason_and_the_text(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(row(0)) + b"{oops\n")
    loaded = read_jsonl(path, on_bad_record="skip")
    reason = "not JSON: Expecting property name enclosed in double quotes at column 2"
    assert loaded.rejected == (Rejected(file=str(path), line=2, reason=reason, text="{oops"),)


def test_a_repeated_record_is_counted_and_no_error(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(row(0), row(1), row(0) | {"idx": 9}))
    loaded = read_jsonl(path)
    assert len(loaded.records) == 2
    assert [(r.line, r.reason) for r in loaded.rejected] == [(3, "has the content of line 1 again")]
    one_line = write(tmp_path / "x.json", json.dumps([row(0), row(1), row(0)]).encode())
    loaded = read_jsonl(one_line)
    assert len(loaded.records) == 2
    assert [(r.line, r.reason) for r in loaded.rejected] == [(1, "has the content of line 1 again")]
    *rows, again = read_input(Input(split="train", ability="math", path=str(one_line), source="x"))
    assert len(rows) == 2
    assert isinstance(again, Rejected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "x.jsonl is empty; expected one JSON object per line"),
        (b"\n \n", "x.jsonl is empty; expected one JSON object per line"),
        (b"[]", "x.jsonl is empty; expected one JSON object per line"),
        (
            lines(row(0)) + b'{"a": "\xff"}\n',
            f"x.jsonl:2: byte 0xff at offset {len(lines(row(0))) + 7} of the file is not UTF-8; "
            "convert the file to UTF-8",
        ),
        (b'{"a": 1, "a": 2}\n', "x.jsonl:1: not JSON that can be read: the field 'a' stands twice in one object"),
        (b'{"a": NaN}\n', "x.jsonl:1: not JSON that can be read: NaN is no JSON value"),
        (b'{"a": ' + b"[" * 99_999 + b"\n", "x.jsonl:1: not JSON that can be read: its brackets are nested too deep"),
        (
            json.dumps(row(0), indent=1).encode(),
            "x.jsonl:1: not JSON: the line is '{' alone; "
            "write each record on one line, or all of them as one list [...]",
        ),
        (b"[\n1,\n", "x.jsonl:2: a record is a JSON object, not 1"),
        (b"3\n", "x.jsonl:1: a record is a JSON object, not 3"),
        (
            json.dumps([row(0)]).encode() + b"x",
            "x.jsonl:1: the JSON list that starts the file is not closed, or something follows it",
        ),
        (
            json.dumps([row(0)], indent=1).encode()[:-1],
            "x.jsonl:16: the JSON list that starts the file is not closed, or something follows it",
        ),
        (b'{"a": "\x01"}\n', "x.jsonl:1: not JSON: Invalid control character at column 8"),
        (b'[\n{"a" 1}]', "x.jsonl:2: not JSON: Expecting ':' delimiter at column 6"),
        (b'[{"a": "\xe4"}]', "x.jsonl:1: byte 0xe4 at offset 8 of the file is not UTF-8; convert the file to UTF-8"),
    ],
)
def test_every_damage_has_one_clear_line(tmp_path, body, expected):
    assert problem(write(tmp_path / "x.jsonl", body)) == expected


def test_a_ten_megabyte_line_is_refused_with_the_limit_and_never_held(tmp_path):
    long = b'{"messages": "' + b"a" * (10 * 2**20) + b'"}\n'
    path = write(tmp_path / "x.jsonl", lines(row(0)) + long + lines(row(1)))
    assert problem(path) == (
        f"x.jsonl:2: the line has {len(long):,} bytes; at most MAX_LINE_BYTES = {MAX_LINE_BYTES:,} are allowed"
    )
    loaded = read_jsonl(path, on_bad_record="skip")
    assert [record.idx for record in loaded.records] == [0, 1]
    assert len(loaded.rejected[0].text) < 3000


def test_reading_lines_holds_one_line_at_a_time(tmp_path):
    body = b"".join(b'{"a": 1' + b" " * 10_000 + b"}\n" for _ in range(1000))  # 10 MB
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(body))
    tracemalloc.start()
    assert sum(line.data["a"] for line in read_lines(path)) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_cut_gzip_file_is_named_even_when_bad_lines_are_skipped(tmp_path):
    whole = gzip.compress(lines(*map(row, range(50))))
    path = write(tmp_path / "x.jsonl.gz", whole[: len(whole) // 2])
    for policy in ("error", "skip"):
        assert problem(path, on_bad_record=policy) == (
            "x.jsonl.gz is a damaged gzip file (Compressed file ended before the end-of-stream marker was reached); "
            "it was cut or altered: copy it again"
        )


def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path):
    whole = bytearray(gzip.compress(lines(*map(row, range(50)))))
    whole[len(whole) // 2] ^= 1
    path = write(tmp_path / "x.jsonl.gz", bytes(whole))
    assert "x.jsonl.gz is a damaged gzip file (" in problem(path, on_bad_record="skip")


def test_what_is_no_file_is_named(tmp_path):
    write(tmp_path / "math_train.jsonl", lines(row(0)))
    assert problem(tmp_path / "x.jsonl") == f"x.jsonl is missing; {tmp_path} has math_train.jsonl"
    assert problem(tmp_path / "no" / "x.jsonl") == f"x.jsonl is missing; there is no folder {tmp_path / 'no'}"
    (tmp_path / "sub").mkdir()
    assert problem(tmp_path / "sub") == "sub is a folder; give a .jsonl, .json or .gz file"


READ_AS_NOBODY = """
import os, sys
from dynamics.data.sources import Files, read_jsonl
from dynamics.errors import UserError
if os.getuid() == 0:
    os.setuid(65534)
for attempt in (lambda: read_jsonl(sys.argv[1] + "/x.jsonl"), lambda: Files(data_dir=sys.argv[2]).found()):
    try:
        attempt()
    except UserError as error:
        print(error)
"""


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    folder, closed = tmp_path / "open", tmp_path / "closed"
    write(folder / "x.jsonl", lines(row(0))).chmod(0)
    closed.mkdir()
    closed.chmod(0)
    for parent in (tmp_path, *tmp_path.parents):  # pytest's own folders, so that another user reaches them
        if "pytest-of-" in str(parent):
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY, str(folder), str(closed)], capture_output=True, text=True, check=True
    )
    closed.chmod(0o755)
    user = os.getuid() or 65534
    assert done.stdout.splitlines() == [
        f"{folder}/x.jsonl may not be read by this user (id {user}); check its permissions",
        f"{closed} may not be read by this user (id {user}); check its permissions",
    ]


def test_rejected_lines_are_written_as_json_lines(tmp_path):
    rejected = [Rejected(file="x", line=3, reason="bad", text="\ud800 中")]
    assert write_rejected(tmp_path / "new" / "rejected.jsonl", rejected) == 1
    assert json.loads((tmp_path / "new" / "rejected.jsonl").read_text(encoding="utf-8")) == {
        "file": "x",
        "line": 3,
        "reason": "bad",
        "text": "\ud800 中",
    }
    assert write_rejected(tmp_path / "new" / "rejected.jsonl", []) == 0
    assert (tmp_path / "new" / "rejected.jsonl").read_bytes() == b""


def test_a_full_disk_keeps_the_old_file_and_leaves_no_rest(tmp_path):
    def rows():
        yield {"a": 1}
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "x.jsonl", b"old")
    with pytest.raises(UserError, match=r"x\.jsonl cannot be written: No space left on device; free space or choose"):
        write_jsonl(path, rows())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


# Layouts of folders


def folders(root: Path) -> None:
    write(root / "math" / "train.jsonl", lines(row(0), row(1)))
    write(root / "math" / "test.jsonl.gz", gzip.compress(lines(row(2))))
    write(root / "role-play" / "train.jsonl", lines(row(3, "roleplay")))


def flat(root: Path) -> None:
    write(root / "math_train.jsonl", lines(row(0), row(1)))
    write(root / "math_test.jsonl.gz", gzip.compress(lines(row(2))))
    write(root / "role-play_train.json", lines(row(3, "roleplay")))


def doit(root: Path) -> None:
    write(root / "curated" / "full" / "math_full.json", lines(row(0), row(1)))
    write(root / "curated" / "1000" / "math_1000.json", lines(row(0)))
    write(root / "curated" / "1000" / "role-play_1000.json", lines(row(3, "role-play")))
    write(root / "curated" / "test" / "math_test.json", lines(row(2)))


LAYOUTS = {"folders": folders, "flat": flat, "doit": doit}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_abilities_splits_and_records(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    source = Files(data_dir=str(tmp_path))
    assert str(source.found()) == f"layout {layout}: role_play (train), math (train/test)"
    assert source.abilities() == ("role_play", "math")
    assert [record.idx for record in source.load("math", "train").records] == [0, 1]
    assert [record.idx for record in source.load("math", "test").records] == [2]
    assert source.load("role_play", "train").records[0].ability == "role_play"
    assert list(source.corpus()) == ["3+1?\n答案：4", "0+1?\n答案：1", "1+1?\n答案：2"]


def test_the_published_folder_may_also_be_given_as_curated(tmp_path):
    doit(tmp_path)
    assert Files(data_dir=str(tmp_path / "curated")).found().layout == "doit"


def test_a_corpus_file_takes_the_place_of_the_train_records(tmp_path):
    folders(tmp_path)
    write(tmp_path / "corpus.jsonl", lines({"text": "one\nlong text"}, {"text": "two"}))
    assert list(Files(data_dir=str(tmp_path)).corpus()) == ["one\nlong text", "two"]
    write(tmp_path / "corpus.jsonl", lines({"txt": "one"}))
    with pytest.raises(UserError, match=r'corpus.jsonl:1: has no text; each line is \{"text": "..."\}'):
        list(Files(data_dir=str(tmp_path)).corpus())


def message(source: Files, ability: str = "math", split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        source.load(ability, split)
    return str(caught.value).replace(source.data_dir, "DIR")


def test_a_missing_ability_or_split_says_what_was_found(tmp_path):
    folders(tmp_path)
    source = Files(data_dir=str(tmp_path))
    found = "found layout folders: role_play (train), math (train/test)"
    assert message(source, "ethics") == f"DIR has no train file of 'ethics'; {found}"
    assert message(source, "math", "valid") == f"DIR has no valid file of 'math'; {found}"
    assert message(source, "math", "dev") == "there is no split 'dev'; allowed: train, valid, test"


def test_a_folder_that_cannot_be_used_says_why(tmp_path):
    source = Files(data_dir=str(tmp_path / "no"))
    assert message(source) == "the data folder DIR does not exist; give the folder of record files with --data-dir"
    write(tmp_path / "a" / "x.csv", b"1")
    assert message(Files(data_dir=str(tmp_path / "a"))) == (
        "no record files in DIR, which has x.csv; expected math/train.jsonl, math_train.jsonl or DoIT's "
        "curated/full/math_full.json, and the same for the other abilities and splits"
    )
    folders(tmp_path / "b")
    flat(tmp_path / "b")
    assert message(Files(data_dir=str(tmp_path / "b"))) == (
        "DIR mixes the layouts folders and flat: math/test.jsonl.gz and math_test.jsonl.gz; keep one of them"
    )
    write(tmp_path / "c" / "math" / "train.json", lines(row(0)))
    write(tmp_path / "c" / "math" / "train.jsonl", lines(row(0)))
    assert message(Files(data_dir=str(tmp_path / "c"))) == (
        "DIR has the train records of 'math' twice: math/train.json and math/train.jsonl; remove one"
    )


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = Files(data_dir=str(tmp_path / "a")).fingerprint()
    assert first == Files(data_dir=str(tmp_path / "b")).fingerprint()
    write(tmp_path / "b" / "math" / "train.jsonl", lines(row(0), row(5)))
    assert first != Files(data_dir=str(tmp_path / "b")).fingerprint()
    write(tmp_path / "a" / "corpus.jsonl", lines({"text": "t"}))
    assert first != Files(data_dir=str(tmp_path / "a")).fingerprint()


def test_a_source_is_a_setting(tmp_path):
    source = Files(data_dir=str(tmp_path), on_bad_record="skip")
    assert from_json(to_json(source)) == source


def test_skipping_is_counted_through_the_folder(tmp_path):
    write(tmp_path / "math" / "train.jsonl", lines(row(0)) + b"oops\n")
    loaded = Files(data_dir=str(tmp_path), on_bad_record="skip").load("math", "train")
    assert isinstance(loaded, Loaded)
    assert (len(loaded.records), len(loaded.rejected)) == (1, 1)
    assert loaded.records[0].source == "math/train.jsonl"
    assert plain_text(loaded.records[0]) == "0+1?\n答案：1"


HEAVY = ("jax", "tensorflow", "seqio", "tensorflow_datasets")
IMPORTS = f"""
import sys
import dynamics.data.sample_sets, dynamics.data.seqio_tasks, dynamics.data.sources, dynamics.data.tfds_builders
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_importing_the_sources_loads_neither_jax_nor_tensorflow():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
