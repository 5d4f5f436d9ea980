"""A run that starts from a folder of weights: its shape, its tokenizer, its name."""

import dataclasses
import json
import shutil

import jax
import pytest

from dynamics.data.tokenizer import train_tokenizer
from dynamics.errors import UserError
from dynamics.model.convert import Params, export_model, import_model, read_config
from dynamics.model.llama import LlamaConfig, init
from dynamics.model.sharding import MeshShape
from dynamics.study.identity import cell_id
from dynamics.study.prepare import Workspace
from dynamics.study.single import train_run

from .tiny import RUN, changed

WEIGHTS = LlamaConfig(
    name="published", vocab_size=420, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
    rope_theta=500_000.0, rms_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(list(RUN.source.tokenizer_texts()), vocab_size=420)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tokenizer):
    """A model folder, as `dynamics model import` writes one."""
    folder = tmp_path_factory.mktemp("weights")
    export_model(Params.of(init(WEIGHTS, jax.random.key(3)), tokenizer, max_length=256), folder / "hf")
    import_model(folder / "hf", folder / "published")
    return folder / "published"


@pytest.fixture
def run(weights):
    return changed(RUN, base=str(weights))


def test_the_weights_decide_what_they_mean_and_the_size_how_it_is_computed(run):
    size = dataclasses.replace(run.size, remat="full", compute_dtype="bfloat16", rope_theta=10_000.0)
    shape = changed(run, size=size).shape()
    assert (shape.rope_theta, shape.rms_eps, shape.tied_head, shape.vocab_size) == (500_000.0, 1e-5, False, 420)
    assert (shape.name, shape.remat, shape.compute_dtype) == ("tiny", "full", "bfloat16")


def test_a_size_of_other_dimensions_is_refused(run):
    with pytest.raises(UserError, match=r"d_ff 32, size 'tiny' has 48; name the size the weights are of"):
        changed(run, size=dataclasses.replace(run.size, d_ff=48)).shape()


def test_rows_longer_than_the_weights_can_attend_to_are_refused(run, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "windowed")
    described = json.loads((weights / "config.json").read_text())
    (tmp_path / "windowed" / "config.json").write_text(json.dumps(described | {"sliding_window": 200}))
    with pytest.raises(UserError, match="sliding"):
        changed(run, base=str(tmp_path / "windowed")).shape()


def test_the_tokenizer_is_that_of_the_weights(run, tokenizer, tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.tokenizer(run) == tokenizer
    assert workspace.model_shape(run).vocab_size == 448  # padded to a multiple of 64; the new rows are unused


def test_the_name_of_a_run_follows_the_content_of_its_weights(run, weights, tmp_path):
    moved = tmp_path / "moved"
    import_model(weights, moved)
    noted = json.loads((weights / "dynamics.json").read_text())
    (moved / "dynamics.json").write_text((weights / "dynamics.json").read_text())
    assert cell_id(changed(run, base=str(moved))) == cell_id(run)
    noted["tensors"] = {"other": "weights"}
    (moved / "dynamics.json").write_text(json.dumps(noted))
    assert cell_id(changed(run, base=str(moved))) != cell_id(run)


def test_the_size_stands_in_the_folders_name(run, weights):
    named = changed(run, base=str(weights.parent / "{size}"), size=dataclasses.replace(run.size, name="published"))
    assert named.shape().rope_theta == read_config(weights).rope_theta


def test_weights_without_digests_are_refused(run, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "hf", ignore=shutil.ignore_patterns("dynamics.json"))
    with pytest.raises(UserError, match=r"has no digests.*dynamics model import .*hf NEW_FOLDER"):
        cell_id(changed(run, base=str(tmp_path / "hf")))
    with pytest.raises(UserError, match="is no folder of weights; give one that `dynamics model import`"):
        cell_id(changed(run, base=str(weights.parent / "nowhere")))


def test_weights_that_were_changed_are_not_trained_on(run, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "model")
    good = changed(run, base=str(tmp_path / "model"), volume=0)
    workspace = Workspace(tmp_path / "cache")
    train_run(good, tmp_path / "runs", workspace, lambda fraction: None)
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="digest"):
        train_run(good, tmp_path / "again", workspace, lambda fraction: None)


def test_the_mesh_is_no_part_of_a_runs_name(run):
    assert cell_id(changed(run, mesh=MeshShape(fsdp=4))) == cell_id(run)
