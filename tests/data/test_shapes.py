"""Every published shape: what its rows become, and what is rejected with which reason."""

import gzip
import json
from pathlib import Path

import pytest

from dynamics.data import shapes
from dynamics.data.shapes import read, read_pairs, stream
from dynamics.errors import UserError
from dynamics.record import RecordError

_HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
_TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]

# shape: (a published row, the turns it becomes as (role, content), its type)
GOOD = {
    "doit": ({"messages": _HI, "type": "math", "idx": 3, "answer": "4"}, ["Hi", "Hello"], "math"),
    "messages": ({"prompt": "Hi", "prompt_id": "a1", "messages": _HI, "type": "easy"}, ["Hi", "Hello"], "easy"),
    "dialogue": ({"id": "0", "data": ["Hi", "Hello", "And?", "Bye"]}, ["Hi", "Hello", "And?", "Bye"], ""),
    "alpaca": (
        {"instruction": "Add.", "input": "1+1", "output": "2", "text": "Below is an instruction"},
        ["Add.\n1+1", "2"],
        "",
    ),
    "dolly": (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "closed_qa"},
        ["Who?\nAnn came.", "Ann"],
        "closed_qa",
    ),
    "sharegpt": ({"id": "x_0", "conversations": _TALK}, ["Hi", "Hello"], ""),
    "belle": ({"instruction": "问", "input": "", "output": "答"}, ["问", "答"], ""),
}
# shape: [(a bad row, the reason)]
BAD = {
    "messages": [
        ({"prompt": "Hi"}, "messages is missing, the row has 'prompt'; the shape 'messages' needs it"),
        ({"messages": _HI[1:]}, "messages[0] is a turn of the assistant; expected: user"),
    ],
    "dialogue": [
        ({"id": "0", "data": ["Hi"]}, "data ends with a turn of the user; the last turn is the assistant's"),
        ({"id": "0", "data": ["Hi", " "]}, "data[1].content is empty"),
        ({"id": "0", "data": "Hi"}, "data must be a list of texts"),
    ],
    "alpaca": [({"instruction": "Add.", "input": "", "output": ""}, "output is empty")],
    "dolly": [
        ({"instruction": "Who?", "context": "", "response": " "}, "response is empty"),
        ({"instruction": "Who?", "context": 3, "response": "x"}, "context is 3; it must be a text"),
    ],
    "sharegpt": [
        ({"conversations": _TALK[::-1]}, "conversations[0] is a turn of the assistant; expected: user"),
        ({"conversations": []}, "conversations is a list of 0"),
        (
            {"conversations": [{"from": "bing", "value": "x"}]},
            "conversations[0].from is 'bing'; allowed: system, human",
        ),
    ],
    "belle": [
        ({"instruction": "Human:a\nHuman:b\nAssistant:", "output": "c"}, "instruction[1] is a turn of the user"),
        ({"instruction": "Human:a\nAssistant:", "output": ""}, "output is empty"),
        ({"instruction": "Human:a\nAssistant:", "input": "b", "output": "c"}, "input is not empty beside a"),
    ],
    "preferences": [({"prompt": "x"}, "is a preference pair, not a record; read it with read_pairs")],
}
SHAPE = {shape.name: shape for shape in shapes.SHAPES}


def _lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _parquet(path: Path, rows: list) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_shape_has_a_case():
    assert {*GOOD, *BAD} == set(SHAPE)


@pytest.mark.parametrize("name", GOOD)
def test_a_published_row_becomes_a_record(tmp_path: Path, name: str):
    row, contents, kind = GOOD[name]
    loaded = read(_lines(tmp_path / "a.jsonl", [row]), SHAPE[name], ability="any", source="s")
    (record,) = loaded.records
    assert [turn.content for turn in record.messages] == contents
    assert [turn.role for turn in record.messages] == ["user", "assistant"] * (len(contents) // 2)
    assert (record.ability, record.type, record.source) == ("any", kind, "s")


@pytest.mark.parametrize("name", GOOD)
def test_a_list_a_gzip_and_parquet_give_the_same_records(tmp_path: Path, name: str):
    row = GOOD[name][0]
    plain = read(_lines(tmp_path / "a.jsonl", [row]), SHAPE[name], ability="any")
    (tmp_path / "b.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "c.json.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    _parquet(tmp_path / "d.parquet", [row])
    for other in ("b.json", "c.json.gz", "d.parquet"):
        assert read(tmp_path / other, SHAPE[name], ability="any") == plain


@pytest.mark.parametrize(("name", "row", "reason"), [(name, *case) for name in BAD for case in BAD[name]])
def test_a_bad_row_is_counted_with_the_published_field(tmp_path: Path, name: str, row: dict, reason: str):
    path = _lines(tmp_path / "a.jsonl", [row])
    loaded = read(path, SHAPE[name], ability="any")
    assert not loaded.records
    assert loaded.rejected[0].reason.startswith(reason)
    assert (loaded.rejected[0].file, loaded.rejected[0].line) == (str(path), 1)
    with pytest.raises(RecordError, match=r"a\.jsonl:1: "):
        read(path, SHAPE[name], ability="any", on_bad_record="error")


def test_a_conversation_inside_an_instruction_becomes_turns(tmp_path: Path):
    row = {
        "instruction": "Human:写一篇文章。 \nAssistant:好的：\n第一段。\n\nHuman: 短一点\nAssistant：",
        "input": "",
        "output": "好。",
    }
    (record,) = read(_lines(tmp_path / "a.json", [row]), shapes.BELLE, ability="belle").records
    assert [(turn.role, turn.content) for turn in record.messages] == [
        ("user", "写一篇文章。"),
        ("assistant", "好的：\n第一段。"),
        ("user", "短一点"),
        ("assistant", "好。"),
    ]


def test_a_mark_in_the_middle_of_a_line_is_text(tmp_path: Path):
    row = {"instruction": "Explain what Human: and Assistant: mean", "input": "", "output": "Speakers."}
    (record,) = read(_lines(tmp_path / "a.json", [row]), shapes.BELLE, ability="belle").records
    assert record.messages[0].content == row["instruction"]


def test_the_last_mark_may_be_missing(tmp_path: Path):
    row = {"instruction": "Human:a\nAssistant:b\nHuman:c\n", "input": "", "output": "d"}
    (record,) = read(_lines(tmp_path / "a.json", [row]), shapes.BELLE, ability="belle").records
    assert [turn.content for turn in record.messages] == ["a", "b", "c", "d"]


def test_a_system_turn_stays(tmp_path: Path):
    row = {"conversations": [{"from": "system", "value": "Be brief."}, *_TALK]}
    (record,) = read(_lines(tmp_path / "a.json", [row]), shapes.SHAREGPT, ability="x").records
    assert record.messages[0].role == "system"


def test_a_repeated_row_is_counted(tmp_path: Path):
    row = GOOD["alpaca"][0]
    loaded = read(_lines(tmp_path / "a.jsonl", [row, row]), shapes.ALPACA, ability="x")
    assert len(loaded.records) == 1
    assert loaded.rejected[0].reason == "has the content of line 1 again"
    (tmp_path / "one_line.json").write_text(json.dumps([row, row]), encoding="utf-8")
    assert len(read(tmp_path / "one_line.json", shapes.ALPACA, ability="x").rejected) == 1


def test_rows_come_one_by_one(tmp_path: Path):
    path = _lines(tmp_path / "a.jsonl", [GOOD["alpaca"][0], {"instruction": 1}])
    found = stream(path, shapes.ALPACA, ability="x", on_bad_record="error")
    assert next(found).messages[1].content == "2"  # type: ignore[union-attr]
    with pytest.raises(RecordError, match=r"a\.jsonl:2"):
        next(found)


def test_a_cut_parquet_file_is_named(tmp_path: Path):
    path = _parquet(tmp_path / "a.parquet", [GOOD["alpaca"][0]] * 9)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a\.parquet is a damaged parquet file .* copy it again"):
        read(path, shapes.ALPACA, ability="x")


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path):
    rows = [{"instruction": str(index), "input": "", "output": "x" if index else ""} for index in range(600)]
    loaded = read(_parquet(tmp_path / "a.parquet", rows[::-1]), shapes.ALPACA, ability="x")
    assert len(loaded.records) == 599
    assert [one.line for one in loaded.rejected] == [600]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = _parquet(tmp_path / "a.parquet", [GOOD["alpaca"][0]])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="which pyarrow reads; install it: pip install pyarrow"):
        read(path, shapes.ALPACA, ability="x")


def test_pairs_are_read_and_repeats_counted(tmp_path: Path):
    row = {"conversations": _TALK[:1], "chosen": _TALK[1], "rejected": {"from": "gpt", "value": "No"}}
    same = row | {"rejected": row["chosen"]}
    loaded = read_pairs(_parquet(tmp_path / "a.parquet", [row, row, same]), source="s")
    assert [(pair.chosen, pair.rejected, pair.source) for pair in loaded.pairs] == [("Hello", "No", "s")]
    assert [one.reason.split(";")[0] for one in loaded.rejected] == [
        "has the content of line 1 again",
        "rejected is the chosen reply again",
    ]


def test_rows_of_csv_are_counted_without_the_heading(tmp_path: Path):
    (tmp_path / "a.csv").write_text('id,question\n0,"one\nline"\n1,two\n', encoding="utf-8-sig")
    assert shapes.count_rows(tmp_path / "a.csv") == 2
    assert shapes.count_rows(_lines(tmp_path / "b.jsonl", [1, 2, 3])) == 3


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "records", "rejected"), [("alpaca_en_demo.json", 985, 14), ("alpaca_zh_demo.json", 992, 8)]
)
def test_real_alpaca_files(shared_data: Path, name: str, records: int, rejected: int):
    loaded = read(shared_data / "sft_dpo_demo" / name, shapes.ALPACA, ability="alpaca")
    assert (len(loaded.records), len(loaded.rejected)) == (records, rejected)
    assert all("has the content of line" in one.reason for one in loaded.rejected)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "pairs", "rejected"), [("dpo_en_demo.json", 295, 5), ("dpo_zh_demo.json", 289, 11)])
def test_real_preference_files(shared_data: Path, name: str, pairs: int, rejected: int):
    loaded = read_pairs(shared_data / "sft_dpo_demo" / name)
    assert (len(loaded.pairs), len(loaded.rejected)) == (pairs, rejected)
    assert all("has the content of line" in one.reason for one in loaded.rejected)


@pytest.mark.shared_data
def test_real_conifer_samples(shared_data: Path):
    loaded = read(shared_data / "conifer" / "samples" / "06_multi_turn.json", shapes.MESSAGES, ability="conifer")
    assert [len(record.messages) for record in loaded.records] == [2, 4, 6]


@pytest.mark.shared_data
def test_real_belle_seeds(shared_data: Path, tmp_path: Path):
    """The seed tasks keep input and output in `instances`; laid out as the published sets they all read."""
    seeds = (shared_data / "belle" / "zh_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"instruction": seed["instruction"], **one} for seed in map(json.loads, seeds) for one in seed["instances"]]
    loaded = read(_lines(tmp_path / "belle.json", rows), shapes.BELLE, ability="belle")
    assert (len(loaded.records), len(loaded.rejected)) == (len(rows), 0)
