"""Fetching: the real huggingface_hub and the real git against a hub and a repository on this machine."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynamics.data import shapes
from dynamics.data.catalogue import CATALOGUE, entry
from dynamics.data.entry import Entry
from dynamics.data.fetched import compare_known
from dynamics.data.hub import _counting, fetch, verify
from dynamics.errors import UserError
from tests.data.fake_hub import COMMIT, FakeHub, serving

ROWS = b"".join(
    json.dumps({"instruction": f"{n}+1?", "input": "", "output": str(n + 1)}).encode() + b"\n" for n in range(200)
)


def set_(**changes: object) -> Entry:
    facts = dict.fromkeys(("licence", "num_records", "num_bytes", "files", "revision"), "read")
    plain = Entry(
        name="set",
        title="A set",
        kind="instructions",
        hub="owner/set",
        revision="main",
        licence="MIT",
        num_records=200,
        num_bytes=None,
        files=("data/*",),
        splits={"train": ("data/train*",), "test": ("data/test*",)},
        shape=shapes.ALPACA,
        certainty=facts,  # type: ignore[arg-type]
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {"README.md": b"# A set\n", "data/train.jsonl": ROWS, "data/test.jsonl": ROWS[:300].rpartition(b"\n")[0]}
    with serving(FakeHub(files=files, large={"data/train.jsonl"})) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def test_a_fetch_gets_the_wanted_files_and_writes_what_it_got(hub: FakeHub, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    fetched = fetch(set_(), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert fetched.commit == COMMIT
    assert fetched.downloaded == ("data/test.jsonl", "data/train.jsonl")
    assert (tmp_path / "set/data/train.jsonl").read_bytes() == ROWS
    assert not (tmp_path / "set/README.md").exists()
    written = json.loads((tmp_path / "set/fetched.json").read_text())
    assert (written["repository"], written["revision"], written["commit"]) == ("owner/set", "main", COMMIT)
    assert [(file["path"], file["bytes"]) for file in written["files"]] == [
        ("data/test.jsonl", len(hub.files["data/test.jsonl"])),
        ("data/train.jsonl", len(ROWS)),
    ]
    total = len(ROWS) + len(hub.files["data/test.jsonl"])
    assert seen[-1] == (total, total)
    assert len(set_().read(tmp_path, "train").records) == 200


def test_a_second_fetch_compares_and_downloads_nothing(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = fetch(set_(), tmp_path)
    hub.asked.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    second = fetch(set_(), tmp_path)
    assert second.files == first.files
    assert second.downloaded == ()
    assert not hub.asked
    assert verify(tmp_path / "set").files == first.files


def test_a_connection_that_breaks_off_goes_on_where_it_was(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # 10 MB: what arrives is kept in such
    hub.cut = {"data/train.jsonl"}
    fetch(set_(), tmp_path)
    assert (tmp_path / "set/data/train.jsonl").read_bytes() == ROWS
    assert hub.ranges == [f"bytes={len(ROWS) // 2 // 1024 * 1024}-"]


def test_bytes_are_counted_once_however_the_hub_sends_them():
    """Large files come in chunks through hf_xet, whose reporter drives the bar in its own way."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    seen: list[tuple[int, int]] = []
    bar = _counting(lambda done, total: seen.append((done, total)), 30)
    with XetDownloadProgressReporter(reconstruction_desc="a", total=30, log_level=30, tqdm_class=bar) as reporter:
        for done in (10, 30):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes_completed=done,
                    total_transfer_bytes_completed=done,
                    total_bytes=30,
                    total_transfer_bytes=30,
                    total_bytes_completion_rate=None,
                    total_transfer_bytes_completion_rate=None,
                )
            )
    assert seen[-1] == (30, 30)
    assert (10, 30) in seen
    assert all(done in (0, 10, 30) for done, _ in seen)


def test_an_interrupted_fetch_goes_on_with_the_next_file(hub: FakeHub, tmp_path: Path):
    hub.failing = {"data/train.jsonl"}
    with pytest.raises(UserError, match=r"answers 503; try again later"):
        fetch(set_(), tmp_path)
    assert not (tmp_path / "set/fetched.json").exists()
    hub.failing = set()
    fetch(set_(), tmp_path)
    assert hub.asked == {"data/test.jsonl": 1, "data/train.jsonl": 2}


def test_a_file_that_has_gone_is_fetched_again_from_the_same_commit(hub: FakeHub, tmp_path: Path):
    fetch(set_(), tmp_path)
    (tmp_path / "set/data/train.jsonl").unlink()
    assert fetch(set_(), tmp_path).downloaded == ("data/train.jsonl",)
    assert hub.asked == {"data/test.jsonl": 1, "data/train.jsonl": 2}


def test_a_repository_that_gives_other_bytes_for_one_commit_is_refused(hub: FakeHub, tmp_path: Path):
    fetch(set_(), tmp_path)
    shutil.rmtree(tmp_path / "set/data")
    shutil.rmtree(tmp_path / "set/.cache")
    hub.files["data/train.jsonl"] = ROWS.replace(b"200", b"201")
    with pytest.raises(UserError, match=r"now gives another data/train\.jsonl at commit 111111111111 .* not kept"):
        fetch(set_(), tmp_path)
    assert not (tmp_path / "set/data/train.jsonl").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(ROWS[:-9]), r"data/train\.jsonl was cut: it has [\d,]+ of [\d,]+ bytes"),
        (lambda path: path.write_bytes(ROWS.replace(b"7", b"8")), r"data/train\.jsonl has changed: its SHA-256 is"),
    ],
)
def test_a_damaged_file_is_named(hub: FakeHub, tmp_path: Path, damage, message: str):
    fetch(set_(), tmp_path)
    damage(tmp_path / "set/data/train.jsonl")
    for check in (lambda: verify(tmp_path / "set"), lambda: fetch(set_(), tmp_path)):
        with pytest.raises(UserError, match=message):
            check()


def test_a_missing_file_and_a_missing_record_are_named(hub: FakeHub, tmp_path: Path):
    fetch(set_(), tmp_path)
    (tmp_path / "set/data/test.jsonl").unlink()
    with pytest.raises(UserError, match=r"data/test\.jsonl is missing"):
        verify(tmp_path / "set")
    with pytest.raises(UserError, match=r"has no fetched\.json"):
        verify(tmp_path)
    (tmp_path / "set/fetched.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"fetched\.json is damaged; delete it"):
        verify(tmp_path / "set")


def test_another_revision_than_the_recorded_is_refused(hub: FakeHub, tmp_path: Path):
    fetch(set_(), tmp_path)
    assert fetch(set_(), tmp_path, revision=COMMIT).downloaded == ()
    with pytest.raises(UserError, match=r"holds owner/set at commit 111111111111, not 'v2'; give another --data-dir"):
        fetch(set_(), tmp_path, revision="v2")


def test_an_unknown_repository_and_an_unknown_revision(hub: FakeHub, tmp_path: Path):
    with pytest.raises(UserError, match=r"has no dataset repository owner/sett that you may read"):
        fetch(set_(hub="owner/sett"), tmp_path)
    with pytest.raises(UserError, match=r"owner/set has no revision 'v9'; leave --revision out for 'main'"):
        fetch(set_(), tmp_path, revision="v9")


def test_a_repository_that_asks_for_consent_says_where_to_give_it(hub: FakeHub, tmp_path: Path):
    hub.gated = True
    with pytest.raises(
        UserError, match=r"/datasets/owner/set asks for consent: accept its terms there, then run hf auth"
    ):
        fetch(set_(), tmp_path)


def test_a_repository_without_the_wanted_files_says_what_it_has(hub: FakeHub, tmp_path: Path):
    with pytest.raises(UserError, match=r"no file that fits parquet/\*; it has README\.md, data/train\.jsonl"):
        fetch(set_(files=("parquet/*",)), tmp_path)


def test_without_a_connection_the_error_says_what_to_copy_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError) as error:
        fetch(set_(), tmp_path)
    message = str(error.value)
    assert "http://127.0.0.1:1 cannot be reached" in message
    assert "hf download owner/set --repo-type dataset --revision main --include 'data/*' --local-dir set" in message
    assert message.endswith(f"then copy the folder to {tmp_path}/set")
    assert "\n" not in message


def test_a_file_of_somebody_else_is_not_overwritten(hub: FakeHub, tmp_path: Path):
    mine = tmp_path / "set/data/test.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.jsonl is there already with another content"):
        fetch(set_(), tmp_path)
    assert mine.read_text(encoding="utf-8") == "mine"
    mine.write_bytes(hub.files["data/test.jsonl"])
    assert fetch(set_(), tmp_path).files


def test_a_zip_file_is_unpacked_and_its_files_are_compared_too(hub: FakeHub, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("dev/law_dev.csv", "id,question\n0,a\n")
    hub.files["all.zip"] = packed.getvalue()
    zipped = set_(files=("all.zip",), archive="all.zip", splits={"dev": ("dev/*",)})
    fetched = fetch(zipped, tmp_path)
    assert [(file.path, file.archive) for file in fetched.files] == [("all.zip", ""), ("dev/law_dev.csv", "all.zip")]
    assert zipped.found(tmp_path, "dev") == (tmp_path / "set/dev/law_dev.csv",)
    (tmp_path / "set/dev/law_dev.csv").unlink()
    hub.asked.clear()
    assert fetch(zipped, tmp_path).files == fetched.files
    assert (tmp_path / "set/dev/law_dev.csv").exists()
    assert not hub.asked


def test_what_was_cut_while_it_was_unpacked_is_not_taken_for_good(hub: FakeHub, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("dev/law_dev.csv", "id,question\n0,a\n")
    hub.files["all.zip"] = packed.getvalue()
    zipped = set_(files=("all.zip",), archive="all.zip", splits={"dev": ("dev/*",)})
    file = tmp_path / "set/dev/law_dev.csv"
    file.parent.mkdir(parents=True)
    for text in ("id,question\n", "id,question\n0,b\n"):  # cut; of the same size and with other bytes
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"law_dev\.csv is not the file of all\.zip: it was cut or changed"):
            fetch(zipped, tmp_path)
    file.unlink()
    assert fetch(zipped, tmp_path).files
    assert not [path for path in file.parent.iterdir() if path != file]


def test_a_folder_that_cannot_be_unpacked_into_is_said(hub: FakeHub, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("dev/law_dev.csv", "id,question\n0,a\n")
    hub.files["all.zip"] = packed.getvalue()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/dev").write_text("a file where the folder goes", encoding="utf-8")
    with pytest.raises(UserError, match=r"law_dev\.csv cannot be written"):
        fetch(set_(files=("all.zip",), archive="all.zip", splits={"dev": ("dev/*",)}), tmp_path)


def test_a_zip_file_that_leads_outside_is_refused(hub: FakeHub, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../evil.csv", "x")
    hub.files["all.zip"] = packed.getvalue()
    with pytest.raises(UserError, match=r"'\.\./evil\.csv' outside its folder"):
        fetch(set_(files=("all.zip",), archive="all.zip"), tmp_path)


def _git(*arguments: str, folder: Path) -> str:
    settings = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> tuple[str, str]:
    """(URL, commit) of a repository whose later commit changes the data."""
    folder = tmp_path / "origin"
    (folder / "data/dev").mkdir(parents=True)
    _git("init", "--quiet", folder=folder)
    (folder / "data/dev/law.csv").write_bytes(b"id,question\r\n0,a\r\n")
    (folder / "data/other.txt").write_text("x", encoding="utf-8")
    _git("add", ".", folder=folder)
    _git("commit", "--quiet", "-m", "one", folder=folder)
    commit = _git("rev-parse", "HEAD", folder=folder)
    (folder / "data/dev/law.csv").write_text("later", encoding="utf-8")
    _git("commit", "--quiet", "-am", "two", folder=folder)
    return folder.as_uri(), commit


def _hosted(url: str, commit: str, **changes: object) -> Entry:
    plain = {"hub": "", "git": url, "revision": commit, "files": ("data/dev/*",), "strip": ("data/",)}
    return set_(**{**plain, "kind": "benchmark", "shape": None, "splits": {"dev": ("dev/*",)}, **changes})


def test_git_gives_the_exact_bytes_of_the_commit(repository: tuple[str, str], tmp_path: Path):
    url, commit = repository
    fetched = fetch(_hosted(url, commit), tmp_path)
    assert (tmp_path / "set/dev/law.csv").read_bytes() == b"id,question\r\n0,a\r\n"
    assert (fetched.repository, fetched.commit, fetched.downloaded) == (url, commit, ("dev/law.csv",))
    assert fetch(_hosted(url, commit), tmp_path).downloaded == ()


def test_known_checksums_hold_for_their_own_commit(repository: tuple[str, str], tmp_path: Path):
    url, commit = repository
    wrong = _hosted(url, commit, checksums={"dev/law.csv": ("0" * 64, 18)})
    with pytest.raises(UserError, match=r"law\.csv is not the file of the catalogue"):
        fetch(wrong, tmp_path / "one")
    assert not (tmp_path / "one/set/fetched.json").exists()
    assert fetch(wrong, tmp_path / "two", revision="HEAD").commit != commit


def test_a_git_repository_that_is_not_there_says_which_commands_to_run(tmp_path: Path):
    with pytest.raises(UserError) as error:
        fetch(_hosted((tmp_path / "nowhere").as_uri(), "a" * 40), tmp_path)
    assert "git fetch failed" in str(error.value)
    assert f"git -C set.git checkout {'a' * 40}; then copy what is in its data/ to {tmp_path}/set" in str(error.value)
    with pytest.raises(UserError, match=r"'--upload-pack=x' is no revision"):
        fetch(_hosted("x", "a" * 40), tmp_path, revision="--upload-pack=x")


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "count"), [("cmmlu", 134), ("agieval", 8)])
def test_the_real_benchmarks_are_those_of_the_catalogue(shared_data: Path, name: str, count: int):
    assert compare_known(entry(name), shared_data) == count


@pytest.mark.shared_data
def test_a_changed_benchmark_is_named(shared_data: Path, tmp_path: Path):
    shutil.copytree(shared_data / "cmmlu", tmp_path / "cmmlu")
    path = tmp_path / "cmmlu/dev/arts.csv"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"A", b"B"))
    with pytest.raises(UserError, match=r"is not cmmlu at d6e7b716d8ac: dev/arts\.csv has changed"):
        compare_known(entry("cmmlu"), tmp_path)


def test_every_entry_comes_from_one_place():
    for one in CATALOGUE:
        assert bool(one.hub) != bool(one.git)
        assert not (one.hub and one.strip), "files of the hub keep their paths"
