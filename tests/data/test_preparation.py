"""Laws of preparation: the same bytes by any number of workers, shares and interruptions, and every loss is counted."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from data.small_tokenizers import small
from dynamics.data.encoding import Conversations, CorpusTexts, Item, PlainText, TrainRecords
from dynamics.data.packing import apply_length_policy
from dynamics.data.preparation import Progress, prepare
from dynamics.data.sources import Files, write_jsonl
from dynamics.data.store import Empty, TokenStore
from dynamics.data.template import DOIT, LLAMA3, encode, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import Turn

ABILITIES = ("code", "math")
RECORDS = 25  # of each ability
PER_PART = 4
WORK = Conversations(length=24, template=DOIT, over_long="truncate")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small("sentencepiece", tokenizer_specials(DOIT))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Answers of growing length, some longer than a row, one whose question alone fills it, and one repeated line."""
    folder = tmp_path_factory.mktemp("records")
    for ability in ABILITIES:
        rows = [
            {"instruction": f"{ability} {i} " + "fox " * (60 * (i == 7)), "input": "", "output": "lazy dog " * i + "A"}
            for i in range(RECORDS)
        ]
        write_jsonl(folder / ability / "train.jsonl", [*rows, rows[0]])
    return Files(data_dir=str(folder), on_bad_record="skip")


def made(folder: Path, source: Files, tokenizer: Tokenizer, **settings) -> bool:
    items = TrainRecords(source)
    settings = {"items_per_part": PER_PART, "small": 0, "manifest": {"a": 1}, "work": WORK} | settings
    return prepare(folder, items, tokenizer=tokenizer, notes=items.notes, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, source: Files, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("one") / "store"
    assert made(folder, source, tokenizer)
    return folder


def test_a_prepared_store_holds_what_encoding_record_by_record_gives(by_one, source, tokenizer):
    store = TokenStore.open(by_one, manifest={"a": 1})
    keys = []
    for ability in ABILITIES:
        encoded = [
            (f"{ability}/{record.id}", encode(DOIT, tokenizer, record.messages))
            for record in source.load(ability, "train").records
        ]
        kept, counts = apply_length_policy(encoded, length=24, policy="truncate")
        assert counts.truncated > 0 < counts.no_trained_token
        told = store.notes["abilities"][ability]
        assert told == {
            "records": RECORDS,
            "kept": counts.kept,
            "truncated": counts.truncated,
            "dropped": 0,
            "no_trained_token": counts.no_trained_token,
            "tokens": sum(len(document) for _, document in kept),
            "trained": sum(document.num_trained for _, document in kept),
            "rejected": 1,
        }
        lengths = dict(encoded)
        for key, document in kept:
            index = int(store.indices([key])[0])
            assert store.document(index).tokens.tolist() == document.tokens.tolist()
            assert store.document(index).trained.tolist() == document.trained.tolist()
            assert store.num_uncut[index] == len(lengths[key])
        keys += [key for key, _ in kept]
    assert store.keys == keys  # abilities one after the other, each in the order of its file
    assert len(store.shards) == -(-2 * RECORDS // PER_PART)


def test_any_number_of_workers_writes_the_same_bytes(by_one, source, tokenizer, tmp_path):
    assert made(tmp_path / "store", source, tokenizer, workers=2)
    assert contents(tmp_path / "store") == contents(by_one)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("of", [2, 3, 40])
def test_shares_in_any_order_write_the_same_bytes_and_the_last_completes_them(by_one, source, tokenizer, tmp_path, of):
    complete = [made(tmp_path / "store", source, tokenizer, share=(number, of)) for number in reversed(range(of))]
    assert complete == [False] * (of - 1) + [True]
    assert contents(tmp_path / "store") == contents(by_one)


def test_a_byte_level_tokenizer_goes_to_workers_whole(source, tmp_path):
    work = Conversations(length=200, template=LLAMA3, over_long="drop")
    tokenizer = small("bytes", tokenizer_specials(LLAMA3))
    for workers in (1, 2):
        assert made(tmp_path / str(workers), source, tokenizer, work=work, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_after_ctrl_c_finished_parts_are_used_again(by_one, source, tokenizer, tmp_path, workers):
    def stop(progress: Progress) -> None:
        if progress.done >= 3 * PER_PART:
            raise Stopped

    with pytest.raises(Stopped):
        made(tmp_path / "store", source, tokenizer, workers=workers, on_progress=stop)
    assert not (tmp_path / "store").exists()
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].done == told[-1].total == 2 * RECORDS
    assert told[-1].found >= 3 * PER_PART
    assert contents(tmp_path / "store") == contents(by_one)


def test_after_a_kill_finished_parts_are_used_again_and_no_worker_is_left(by_one, source, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    program = f"""
import time
from pathlib import Path
from dynamics.data.encoding import Conversations, TrainRecords
from dynamics.data.preparation import prepare
from dynamics.data.sources import Files
from dynamics.data.template import DOIT
from dynamics.data.tokenizer import Tokenizer
source = Files(data_dir={source.data_dir!r}, on_bad_record="skip")
items = TrainRecords(source)
def tell(progress):
    if progress.done >= {5 * PER_PART}:
        print("halfway", flush=True)
        time.sleep(60)
prepare({str(tmp_path / "store")!r}, items, Conversations(length=24, template=DOIT, over_long="truncate"),
    tokenizer=Tokenizer.load({str(tmp_path / "t.model")!r}), manifest={{"a": 1}}, workers=2, small=0,
    items_per_part={PER_PART}, notes=items.notes, on_progress=tell)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and is_worker(pid) for pid in workers):
        assert time.monotonic() < end, "a worker outlived the process that started it"
        time.sleep(0.05)
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].found >= 5 * PER_PART
    assert contents(tmp_path / "store") == contents(by_one)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def is_worker(pid: int) -> bool:
    try:
        return b"part_workers" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_damaged_part_is_made_anew(by_one, source, tokenizer, tmp_path):
    assert not made(tmp_path / "store", source, tokenizer, share=(0, 2))
    unfinished = tmp_path / ".store.unfinished"
    for name in ("part-00000.array_record", "part-00002.json"):
        data = bytearray((unfinished / name).read_bytes())
        data[len(data) // 2] ^= 1
        (unfinished / name).write_bytes(data)
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].found == 4 * PER_PART + 2  # of seven even numbers, the last a short part
    assert contents(tmp_path / "store") == contents(by_one)


def test_parts_of_other_settings_are_not_used(by_one, source, tokenizer, tmp_path):
    for other in ({"manifest": {"a": 2}}, {"items_per_part": 5}):
        assert not made(tmp_path / "store", source, tokenizer, share=(0, 2), **other)
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].found == 0
    assert contents(tmp_path / "store") == contents(by_one)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_record_at_fault_is_named_with_its_place_and_the_first_of_several(source, tokenizer, tmp_path, workers):
    def items():
        for number in range(40):
            turns = [Turn(role="user", content="hi"), Turn(role="assistant", content="fox")]
            if number in (9, 10, 33):
                turns.insert(1, Turn(role="system", content="late"))
            yield Item(
                ability="math", key=f"math/{number}", content=tuple(turns), place=f"math/train.jsonl:{number + 1}"
            )

    with pytest.raises(UserError, match=r"record math/9 of math/train.jsonl:10: messages\[1\] is a system turn"):
        prepare(
            tmp_path / "store", items(), WORK, tokenizer=tokenizer, manifest={}, workers=workers,
            items_per_part=PER_PART, small=0,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # other records make another store


def test_a_document_that_is_too_long_is_an_error_under_that_policy(source, tokenizer, tmp_path):
    work = Conversations(length=24, template=DOIT, over_long="error")
    with pytest.raises(UserError, match=r"document code/\w+ has \d+ tokens, rows have 24"):
        made(tmp_path / "store", source, tokenizer, work=work)


def test_a_bad_line_is_told_with_its_file_and_number(source, tokenizer, tmp_path):
    strict = Files(data_dir=source.data_dir)
    path = tmp_path / "math" / "train.jsonl"
    write_jsonl(path, [{"instruction": "a", "output": "b"}, {"instruction": "a"}])
    strict = Files(data_dir=str(tmp_path))
    with pytest.raises(UserError, match=rf"{path}:2: output is missing"):
        made(tmp_path / "store", strict, tokenizer, workers=2)


def test_a_worker_that_dies_is_told_and_its_finished_parts_are_kept(source, tokenizer, tmp_path):
    def kill(progress: Progress) -> None:
        for pid in children(os.getpid()):
            if is_worker(pid):
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"ended by itself .exit code -9.*fewer workers: finished parts are kept"):
        made(tmp_path / "store", source, tokenizer, workers=2, on_progress=kill)
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].found >= PER_PART


def test_a_full_disk_is_told_and_finished_parts_are_kept(source, tokenizer, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails as a full disk does

    try:
        with pytest.raises(UserError, match=r"the token store .*/store could not be written .*free some space"):
            made(tmp_path / "store", source, tokenizer, on_progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told: list[Progress] = []
    assert made(tmp_path / "store", source, tokenizer, on_progress=told.append)
    assert told[-1].found == PER_PART


def prepared(folder: Path, items: Iterable[Item], tokenizer: Tokenizer, **settings) -> bool:
    return prepare(
        folder, items, WORK, tokenizer=tokenizer, items_per_part=PER_PART, small=0, manifest={"a": 1}, **settings
    )


def slowly(source: Files, *, after: int, wait: threading.Event) -> Iterator[Item]:
    """The source's items, of which all but the first so many come after the event."""
    for number, item in enumerate(TrainRecords(source)):
        if number == after:
            wait.wait(60)
        yield item


def test_a_share_whose_store_is_completed_by_another_process_is_done(by_one, source, tokenizer, tmp_path):
    done, complete = threading.Event(), []
    folder = tmp_path / "store"
    items = slowly(source, after=PER_PART * 2 + 1, wait=done)
    share = threading.Thread(target=lambda: complete.append(prepared(folder, items, tokenizer, share=(0, 2))))
    share.start()
    assert made(folder, source, tokenizer)
    done.set()
    share.join(60)
    assert complete == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_record_at_fault_takes_no_parts_from_a_share_at_work(source, tokenizer, tmp_path):
    wait, complete = threading.Event(), []
    folder = tmp_path / "store"
    items = slowly(source, after=PER_PART * 2 + 1, wait=wait)
    share = threading.Thread(target=lambda: complete.append(prepared(folder, items, tokenizer, share=(0, 2))))
    share.start()
    while not (tmp_path / ".store.unfinished").is_dir():
        pass

    def broken():
        yield next(iter(TrainRecords(source)))
        raise UserError("line 2 is at fault")

    with pytest.raises(UserError, match="line 2 is at fault"):
        prepared(folder, broken(), tokenizer)
    wait.set()
    share.join(60)
    assert complete == [False], "the other share's parts are missing, its own are there"
    with pytest.raises(UserError, match="line 2 is at fault"):
        prepared(folder, broken(), tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_part_without_a_document_and_an_empty_source_are_no_shards(tokenizer, tmp_path):
    long = (Turn(role="user", content="fox " * 99), Turn(role="assistant", content="dog"))
    short = (Turn(role="user", content="fox"), Turn(role="assistant", content="dog"))
    items = [Item(ability="math", key=f"math/{i}", content=long if i < 8 else short) for i in range(12)]
    settings = {"tokenizer": tokenizer, "manifest": {}, "items_per_part": PER_PART}
    drop = Conversations(length=24, template=DOIT, over_long="drop")
    assert prepare(tmp_path / "store", items, drop, **settings)
    store = TokenStore.open(tmp_path / "store")
    assert [path.name for path in store.shards] == ["tokens-00000-of-00001.array_record"]
    assert store.notes["abilities"]["math"]["dropped"] == 8
    for nothing in ([], items[:8]):
        with pytest.raises(Empty, match="no document to write"):
            prepare(tmp_path / "none", nothing, drop, **settings)


def test_plain_text_is_cut_into_pieces_that_are_trained_on_whole(source, tokenizer, tmp_path):
    texts = CorpusTexts(source)
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert prepare(
            folder, texts, PlainText(length=10), tokenizer=tokenizer, manifest={}, workers=workers,
            items_per_part=PER_PART, small=0,
        )  # fmt: skip
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    store = TokenStore.open(folder)
    for number, text in enumerate(source.corpus()):
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        starts = range(0, len(ids) - 1, 10)
        read, trained = store.read(store.indices([f"{number}/{start}" for start in starts]))
        assert read.tolist() == ids[: len(read)]
        assert len(ids) - len(read) <= 1
        assert trained.all()


def test_small_work_starts_no_process_and_large_work_none_that_knows_jax(source, tokenizer, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert made(tmp_path / "small", source, tokenizer, workers=2, small=10**6)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == before
    code = (
        "import sys; import dynamics.data.part_workers; from dynamics.data.tokenizer import Tokenizer; "
        "import array_record.python.array_record_module, sentencepiece; "
        "print([name for name in ('jax', 'flax', 'tensorflow', 'seqio', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "message"), [({"workers": 0}, "workers=0; give at least 1"), ({"share": (2, 2)}, "share 2 of 2")]
)
def test_numbers_out_of_range_are_told(source, tokenizer, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        made(tmp_path / "store", source, tokenizer, **settings)
