"""What is damaged in the cache is set aside and made anew, and gives what it gave before."""

import pytest

from dynamics.errors import UserError
from dynamics.study.cache import from_cache, read_sealed, write_sealed
from dynamics.study.prepare import Workspace

from .tiny import RUN


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


@pytest.mark.parametrize("damaged", ["tokenizers/*.model", "tokens/*/*record*", "tokens/*.json"])
def test_a_flipped_bit_in_tokenizer_or_tokens_changes_nothing(tmp_path, damaged):
    run = RUN
    sound = Workspace(tmp_path)
    tokenizer, store = sound.tokenizer(run).fingerprint, sound.pool(run).store.fingerprint
    flip(next(iter(tmp_path.glob(damaged))))
    again = Workspace(tmp_path)
    assert again.tokenizer(run).fingerprint == tokenizer
    assert again.pool(run).store.fingerprint == store
    assert list(tmp_path.glob("**/damaged-1-*.reason.txt"))
