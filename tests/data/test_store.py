"""Laws of the token store: what was written is read back, and damage of any kind is refused with its place."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynamics.data.store as store_module
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.errors import UserError

SETTINGS = {"tokenizer": "abc", "length": 512, "nested": {"seed": 0}}
SHARDS = tuple(f"tokens-{number:05}-of-00003.array_record" for number in range(3))
FILES = (*SHARDS, "lengths.npy", "keys.txt")


def documents(num: int, seed: int = 0) -> list[tuple[str, Encoded]]:
    draw = np.random.default_rng(seed)
    made = []
    for index in range(num):
        size = int(draw.integers(1, 30))
        tokens = draw.integers(0, 2**28, size).astype(np.int32)
        made.append((f"math/{index}", Encoded(tokens=tokens, trained=draw.random(size) < 0.5)))
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space") / "store"
    TokenStore.build(folder, documents(20), manifest=SETTINGS, documents_per_shard=8)
    return folder


def copy(sound: Path, to: Path) -> Path:
    to.mkdir()
    for file in sound.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_reading_gives_what_was_written(sound, in_memory):
    store = TokenStore.open(sound, manifest=SETTINGS, in_memory=in_memory)
    assert store.kept_in_memory == (in_memory > 0)
    assert len(store) == 20
    for index, (key, document) in enumerate(documents(20)):
        read = store.document(index)
        assert store.keys[index] == key
        assert read.tokens.tolist() == document.tokens.tolist()
        assert read.trained.tolist() == document.trained.tolist()
        assert (store.num_tokens[index], store.num_trained[index]) == (len(document), document.num_trained)


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_documents_come_in_the_order_asked_for(sound, in_memory):
    store = TokenStore.open(sound, in_memory=in_memory)
    wanted = store.indices(["math/7", "math/3", "math/7", "math/19"])
    tokens, trained = store.read(wanted)
    written = documents(20)
    assert tokens.tolist() == np.concatenate([written[i][1].tokens for i in (7, 3, 7, 19)]).tolist()
    assert trained.tolist() == np.concatenate([written[i][1].trained for i in (7, 3, 7, 19)]).tolist()
    assert [len(part) for part in store.read(store.indices([]))] == [0, 0]


def test_equal_documents_give_an_equal_fingerprint(sound, tmp_path):
    first = TokenStore.open(sound).fingerprint
    assert TokenStore.build(tmp_path / "same", documents(20), manifest={}).fingerprint == first
    assert TokenStore.build(tmp_path / "more", documents(21), manifest={}).fingerprint != first
    renamed = [(f"code/{index}", document) for index, (_, document) in enumerate(documents(20))]
    assert TokenStore.build(tmp_path / "keys", renamed, manifest={}).fingerprint != first
    flipped = [(key, Encoded(tokens=d.tokens, trained=~d.trained)) for key, d in documents(20)]
    assert TokenStore.build(tmp_path / "mask", flipped, manifest={}).fingerprint != first


@pytest.mark.parametrize("per_shard", [1, 7, 20])
def test_where_shards_end_changes_no_document_and_no_fingerprint(sound, tmp_path, per_shard):
    store = TokenStore.build(tmp_path / "store", documents(20), manifest={}, documents_per_shard=per_shard)
    assert len(store.shards) == -(-20 // per_shard)
    assert store.fingerprint == TokenStore.open(sound).fingerprint == "86ff60c68db381dc"  # as before branches
    for in_memory in (0, 1 << 30):
        again = TokenStore.open(store.folder, in_memory=in_memory)
        wanted = np.array([19, 0, 7, 8, 7, 13])
        for one, other in zip(again.read(wanted), TokenStore.open(sound).read(wanted), strict=True):
            assert one.tolist() == other.tolist()


def test_equal_documents_give_equal_bytes(sound, tmp_path):
    again = TokenStore.build(tmp_path / "again", documents(20), manifest=SETTINGS, documents_per_shard=8).folder
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in sound.iterdir()
    }


def test_more_shards_than_may_be_open_are_read(sound, monkeypatch):
    monkeypatch.setattr(store_module, "_MOST_OPEN", 1)
    store = TokenStore.open(sound, in_memory=0)
    for index, (_, document) in enumerate(documents(20)):
        assert store.document(19 - index if index % 2 else index) is not None
        assert store.document(index).tokens.tolist() == document.tokens.tolist()


def test_reading_a_store_imports_neither_jax_nor_tensorflow(sound):
    code = (
        "import sys; from dynamics.data.store import TokenStore; "
        f"assert len(TokenStore.open({str(sound)!r}).read(__import__('numpy').arange(20))) == 2; "
        "print([name for name in ('jax', 'tensorflow', 'seqio', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_that_another_process_finished_first_is_used(sound):
    again = TokenStore.build(sound, documents(20), manifest=SETTINGS)
    assert len(again) == 20
    assert [file.name for file in sound.parent.iterdir()] == ["store"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from documents(3)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        TokenStore.build(tmp_path / "store", broken(), manifest={})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"store .*could not be written .*free some space or choose another folder"):
            TokenStore.build(tmp_path / "store", documents(400), manifest={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        TokenStore.build(tmp_path / "file" / "store", documents(2), manifest={})


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=15)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(sound, tmp_path_factory, name, where, bit):
    folder = copy(sound, tmp_path_factory.mktemp("flip") / "store")
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} does not match the digest in its manifest"):
        TokenStore.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_and_a_missing_one_are_found(sound, tmp_path, name):
    folder = copy(sound, tmp_path / "store")
    size = (folder / name).stat().st_size
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} has {size - 1} bytes, its manifest says {size}: it was cut"):
        TokenStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        TokenStore.open(folder)


@pytest.mark.parametrize("name", ["fingerprint", "settings", "files", "tokens", "documents"])
def test_a_changed_manifest_is_found(sound, tmp_path, name):
    folder = copy(sound, tmp_path / "store")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {} if isinstance(manifest[name], dict) else 0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not match the digest it holds"):
        TokenStore.open(folder)


def test_a_store_made_with_other_settings_is_refused(sound):
    with pytest.raises(UserError, match=r"other settings .different: length, tokenizer.; remove the folder"):
        TokenStore.open(sound, manifest={**SETTINGS, "length": 8, "tokenizer": "xyz"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no token store: manifest.json is missing"),
        ("", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ("{}", "manifest.json is damaged"),
        ("[1", "manifest.json is damaged"),
        (json.dumps({"format": 2, "files": {}, "settings": {}}), "does not match the digest it holds"),
        (json.dumps({"format": 1, "files": {}, "settings": {}}), "has format 1, this version reads 2"),
        (json.dumps({"format": 9, "files": {}, "settings": {}}), "has format 9, this version reads 2"),
    ],
)
def test_a_damaged_manifest_is_refused(sound, tmp_path, text, message):
    folder = copy(sound, tmp_path / "store")
    if text is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        TokenStore.open(folder)


@pytest.mark.parametrize(
    ("given_documents", "message"),
    [
        ([], "no document to write"),
        ([documents(1)[0], documents(1)[0]], "key 'math/0' of a document stands twice"),
        ([("a\nb", documents(1)[0][1])], "is empty or has a line break"),
        ([("a", Encoded(tokens=np.zeros(0, np.int32), trained=np.zeros(0, bool)))], "document a has no token"),
    ],
)
def test_documents_that_cannot_be_told_apart_are_refused(tmp_path, given_documents, message):
    with pytest.raises(UserError, match=message):
        TokenStore.build(tmp_path / "store", given_documents, manifest={})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_refused(sound):
    with pytest.raises(UserError, match="has no document 'math/99' among its 20"):
        TokenStore.open(sound).indices(["math/1", "math/99"])
