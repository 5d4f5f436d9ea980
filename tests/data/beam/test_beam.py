"""Rows and token stores over Apache Beam's direct runner: the same files as without it. Run by `make beam`."""

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("apache_beam") is None:
    pytest.skip("apache_beam is not installed here: `make beam`", allow_module_level=True)

import apache_beam
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from dynamics.data.beam import prepare_tokens
from dynamics.data.encoding import Conversations, TrainRecords
from dynamics.data.preparation import prepare
from dynamics.data.sources import Files
from dynamics.data.store import TokenStore
from dynamics.data.template import DOIT
from dynamics.data.tfds_base import Config, RecordsBuilder
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.tfds_datasets.jsonl_folder import Builder
from tests.data.small_tokenizers import byte_level

WORKERS = [("in_memory", 1), ("multi_processing", 2), ("multi_processing", 4)]


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR)


def options(mode: str, workers: int) -> Any:
    return PipelineOptions(direct_running_mode=mode, direct_num_workers=workers)


def record(number: int) -> str:
    turns = [{"role": "user", "content": f"问 {number} " * (number % 9 + 1)}, {"role": "assistant", "content": "答"}]
    return json.dumps({"messages": turns, "idx": number}, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two abilities; the train records of one with blank, broken and repeated lines, far from each other."""
    folder = tmp_path_factory.mktemp("records")
    math = [record(number) for number in range(60)]
    lines = ["{}\n", *math[:20], "\n", '{"broken\n', *math[20:50], math[3], math[44], "[]\n", *math[50:], math[3]]
    (folder / "math_train.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "code_train.json").write_text(
        "[" + ",\n".join(record(n) for n in range(100, 107)) + "]", encoding="utf-8"
    )
    (folder / "code_test.jsonl").write_text(record(7) + record(8), encoding="utf-8")
    return folder


def prepared(folder: Path, data_dir: Path, **download: Any) -> Any:
    builder = Builder(config=Config(name="x", folder=str(folder)), data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**download))
    return builder


def files(builder: Any) -> dict[str, str]:
    """Digests of all files but dataset_info.json; there Beam sums the same sizes."""
    paths = [path for path in Path(builder.data_dir).iterdir() if path.name != "dataset_info.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    ("mode", "workers", "num_shards"), [*((*one, 2) for one in WORKERS), ("multi_processing", 2, None)]
)
def test_beam_writes_the_same_files(folder, tmp_path, monkeypatch, mode, workers, num_shards):
    monkeypatch.setattr(RecordsBuilder, "PIECE", 700)
    plain = prepared(folder, tmp_path / "plain", num_shards=num_shards)
    beam = prepared(
        folder,
        tmp_path / "beam",
        num_shards=num_shards,
        beam_runner="DirectRunner",
        beam_options=options(mode, workers),
    )
    assert files(beam) == files(plain)
    assert beam.info.metadata["counts"] == {"train": {"code": 7, "math": 60}, "test": {"code": 2}}
    assert beam.info.metadata["rejected"] == 6
    assert beam.info.splits["train"].shard_lengths == plain.info.splits["train"].shard_lengths
    assert beam.info.splits["train"].num_bytes == plain.info.splits["train"].num_bytes


def test_a_limit_that_beam_would_ignore_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="max_examples_per_split does not reach Beam"):
        prepared(folder, tmp_path, max_examples_per_split=3, beam_runner="DirectRunner")


@pytest.mark.parametrize(("mode", "workers"), WORKERS[:2])
def test_a_token_store_has_the_same_bytes(folder, tmp_path, mode, workers):
    tokenizer = Tokenizer.from_bytes(byte_level("smollm"))
    check_token_store(folder, tmp_path, tokenizer, mode, workers)


def test_a_token_store_of_a_sentencepiece_model(folder, tmp_path, shared_data):
    # Loaded, not trained: the sentencepiece that goes with Beam's protobuf cannot train our tokenizers.
    tokenizer = Tokenizer.load(shared_data / "llama_tokenizer" / "tokenizer.model")
    check_token_store(folder, tmp_path, tokenizer, "multi_processing", 2)


def check_token_store(folder: Path, tmp_path: Path, tokenizer: Tokenizer, mode: str, workers: int) -> None:
    source = Files(data_dir=str(folder), on_bad_record="skip")
    work = Conversations(length=512, template=DOIT, over_long="truncate")
    settings: dict[str, Any] = {"tokenizer": tokenizer, "manifest": {"of": "a test"}, "items_per_part": 9}
    prepare(tmp_path / "plain", TrainRecords(source), work, **settings)
    prepare_tokens(
        tmp_path / "beam",
        TrainRecords(source),
        work,
        **settings,
        shares=3,
        runner="DirectRunner",
        options=options(mode, workers),
    )
    stores = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "beam")]
    assert stores[0] == stores[1]
    assert len(TokenStore.open(tmp_path / "beam", manifest={"of": "a test"})) == 67
    assert apache_beam.__version__
