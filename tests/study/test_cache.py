"""What is damaged in the cache is set aside and made anew, and gives what it gave before."""

import dataclasses
import json

import pytest

from dynamics.errors import UserError
from dynamics.study.cache import from_cache, read_sealed, write_sealed
from dynamics.study.prepare import Workspace

from .tiny import RUN, changed


def test_a_sealed_file_is_read_as_it_was_written_and_any_changed_bit_is_noticed(tmp_path):
    path = tmp_path / "x.model"
    write_sealed(path, b"hello")
    assert read_sealed(path) == b"hello"
    path.write_bytes(b"hellp")
    with pytest.raises(UserError, match="was written"):
        read_sealed(path)
    (tmp_path / "x.model.sha256").unlink()
    with pytest.raises(UserError, match="with its digest"):
        read_sealed(path)


def test_a_damaged_item_is_kept_apart_with_its_reason_and_made_anew(tmp_path, capsys):
    path = tmp_path / "item"
    made = []

    def make():
        made.append(1)
        write_sealed(path, b"sound")

    def read():
        return read_sealed(path)

    assert from_cache(path, make=make, read=read) == b"sound"
    assert from_cache(path, make=make, read=read) == b"sound"
    assert len(made) == 1
    for number in (1, 2):
        path.write_bytes(b"bad")
        assert from_cache(path, make=make, read=read) == b"sound"
        assert (tmp_path / f"damaged-{number}-item").read_bytes() == b"bad"
        assert "SHA-256" in (tmp_path / f"damaged-{number}-item.reason.txt").read_text()
    assert "made anew" in capsys.readouterr().err


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damaged", ["tokenizers/*.model", "tokens/*/*record*", "tokens/*/keys.txt", "tokens/*/manifest.json"]
)
def test_a_flipped_bit_in_tokenizer_or_tokens_changes_nothing(tmp_path, damaged):
    run = RUN
    sound = Workspace(tmp_path)
    tokenizer, store = sound.tokenizer(run).fingerprint, sound.pool(run).store.fingerprint
    flip(next(iter(tmp_path.glob(damaged))))
    again = Workspace(tmp_path)
    assert again.tokenizer(run).fingerprint == tokenizer
    assert again.pool(run).store.fingerprint == store
    assert list(tmp_path.glob("**/damaged-1-*.reason.txt"))


def test_a_store_of_the_first_format_is_set_aside_with_the_reason_and_made_anew(tmp_path, capsys):
    folder = Workspace(tmp_path).pool(RUN).store.folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    folder.with_suffix(".json").write_text("{}")  # lay beside it
    assert len(Workspace(tmp_path).pool(RUN).store) == manifest["documents"]
    told = capsys.readouterr().err
    assert "set aside" in told
    assert "has format 1, this version reads 2" in told
    assert not folder.with_suffix(".json").exists()


# What the pool and the corpus of these runs were before they were made of shards.
BEFORE = {
    "whole": ({}, "e9ce8bdb6c87ff17", "37dfc9fb7ae1dd31", 80, 0),
    "cut": ({"over_long": "truncate"}, "283548e3165d5632", "37dfc9fb7ae1dd31", 29, 25),
    "dropped": ({"over_long": "drop"}, "fef4e68ed829f350", "37dfc9fb7ae1dd31", 4, 0),
}


@pytest.mark.parametrize("name", BEFORE)
def test_pool_and_corpus_hold_what_they_held_before_they_were_sharded(tmp_path, name):
    fields, pool_fingerprint, corpus_fingerprint, documents, num_truncated = BEFORE[name]
    batch = dataclasses.replace(RUN.batch, length=RUN.batch.length if name == "whole" else 32)
    run, workspace = changed(RUN, batch=batch, **fields), Workspace(tmp_path)
    pool = workspace.pool(run)
    assert (pool.store.fingerprint, len(pool.store)) == (pool_fingerprint, documents)
    assert len(pool.truncated) == num_truncated
    assert workspace.corpus(run, length=64).fingerprint == corpus_fingerprint
    for ability in run.source.abilities():
        in_file = [record.id for record in run.source.load(ability, "train").records]
        assert pool.ids[ability] == [id for id in in_file if id in pool.ids[ability]]
        assert pool.counts[ability].kept == len(pool.ids[ability])
