"""What runs read is prepared once, told with its counts, and checked before anything is trained."""

import dataclasses
import io
from pathlib import Path

import pytest

from dynamics.data.doit import Doit
from dynamics.data.preparation import Progress
from dynamics.data.recipes import Maximum, Reconstruct
from dynamics.data.sources import write_jsonl
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES
from dynamics.study.checks import check_volumes
from dynamics.study.grid import Cell
from dynamics.study.prepare import Workspace, prepare_runs
from dynamics.study.stores import PassLine, ProgressLine

from .tiny import RUN, changed


def test_preparing_tells_what_the_stores_hold_and_that_they_are_there_already(tmp_path):
    runs = [RUN, changed(RUN, seed=1)]
    first, again = (prepare_runs(runs, Workspace(tmp_path)) for _ in range(2))
    assert [store["state"] for store in first["stores"]] == ["prepared"] * 2  # the records and the plain text
    assert [store["state"] for store in again["stores"]] == ["already prepared"] * 2
    pool = Workspace(tmp_path).pool(RUN)
    told = first["stores"][0]
    assert (told["folder"], told["documents"]) == (str(pool.store.folder), len(pool.store))
    assert told["tokens"] == sum(one["tokens"] for one in told["abilities"].values()) == pool.store.num_tokens.sum()
    assert told["trained"] == sum(one["trained"] for one in told["abilities"].values())
    assert list(told["abilities"]) == list(RUN.source.abilities())
    assert {name: told["settings"][name] for name in ("tokenizer", "template")} == {
        "tokenizer": first["tokenizers"][0]["fingerprint"], "template": pool.store.settings["template"],
    }  # fmt: skip
    assert [one["abilities"]["math"] for one in first["evaluation"]] == [2, 2]


def test_any_changed_input_makes_another_store(tmp_path):
    workspace = Workspace(tmp_path)
    longer = changed(RUN, batch=dataclasses.replace(RUN.batch, length=512))
    other = changed(RUN, source=dataclasses.replace(RUN.source, seed=1))
    runs = [RUN, longer, other, changed(RUN, over_long="drop"), changed(RUN, vocab_size=410)]
    assert len({workspace.pool_plan(run).name for run in runs}) == len(runs)


def test_a_recipe_that_asks_for_more_than_there_is_is_told_before_training(tmp_path):
    run = changed(RUN, recipe=Reconstruct(total=1000, few=2, capped=()))
    cell = Cell(id="x", coords={}, run=run)
    with pytest.raises(UserError, match=r"recipe 'reconstruct' shares 996 of its 1,000 records .* which have 64"):
        check_volumes([cell], Workspace(tmp_path))
    check_volumes([dataclasses.replace(cell, run=changed(run, recipe=Maximum(few=2, capped=())))], Workspace(tmp_path))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """DoIT's layout: two valid and three test records of each ability, a C-Eval part with test records only."""

    def rows(name: str, many: int) -> list[dict[str, object]]:
        return [{"instruction": f"{name} {number}", "output": "7"} for number in range(many)]

    data = tmp_path / "data"
    for ability in ABILITY_NAMES:
        for place, many in (("full", 6), ("valid", 2), ("test", 3)):
            write_jsonl(data / "curated" / place / f"{ability}_{place}.json", rows(f"{ability} {place}", many))
    write_jsonl(data / "synthetic" / "40960" / "general.json", rows("synthetic", 9))
    write_jsonl(data / "ceval_physician.json", rows("physician", 4))
    write_jsonl(data / "corpus.jsonl", [{"text": f"plain text {number}"} for number in range(50)])
    return data


def test_every_source_is_prepared_scored_on_the_same_records_and_shares_its_plain_text(tmp_path, published):
    workspace = Workspace(tmp_path / "cache")
    workspace.tokenizer(RUN).save(tmp_path / "t.model")
    runs = [
        changed(RUN, source=Doit(name=part, part=part, data_dir=str(published)), tokenizer=str(tmp_path / "t.model"))
        for part in ("full", "synthetic", "mixed")
    ]
    told = prepare_runs(runs, workspace)
    assert [(store["source"], store["split"], store["documents"]) for store in told["stores"]] == [
        ("full", "train", 60), ("full", "corpus", 50), ("synthetic", "train", 9), ("mixed", "train", 69),
    ]  # fmt: skip
    assert told["stores"][2]["abilities"].keys() == {"synthetic"}
    for one in told["evaluation"]:
        many = {"valid": 2, "test": 3}[one["split"]]
        physician = {"ceval_physician": 4} if one["split"] == "test" else {}
        assert one["abilities"] == dict.fromkeys(ABILITY_NAMES, many) | physician
    prepared, rejected = workspace.evaluation(runs[1], "test", row_shards=1)
    assert (len(prepared.items), rejected) == (34, 0)


def test_long_work_is_told_with_rate_and_time_left_and_short_work_not_at_all():
    stream = io.StringIO()
    quick = ProgressLine("preparing", stream=stream)
    quick(Progress(done=5, total=10, found=0))
    assert stream.getvalue() == ""
    slow = ProgressLine("preparing", every=0.0, stream=stream)
    slow(Progress(done=4096, total=None, found=0))
    slow(Progress(done=8192, total=10_000, found=4096))
    slow(Progress(done=10_000, total=10_000, found=4096))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("preparing: 4,096 of ..., ")
    assert second.startswith("preparing: 8,192 of 10,000, ")
    assert " a second, about 0 s left" in second


def test_the_clock_of_a_pass_starts_when_its_program_is_compiled(monkeypatch):
    """Half of 100 pairs lay in the cache; the first batch of 10 took a minute of compiling, the next 10 two seconds."""
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr("dynamics.study.stores.time.monotonic", lambda: now[0])
    line = PassLine("references", every=1.0, stream=stream)
    for at, done in ((60.0, 60), (62.0, 70)):
        now[0] = at
        line(Progress(done=done, total=100, found=50))
    assert stream.getvalue() == "references: 70 of 100, 5 a second, about 6 s left\n"
