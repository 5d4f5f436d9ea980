"""Checkpoints: bit-exact on any mesh, damage found and walked past, a full or read-only disk told in one line."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from jax.sharding import NamedSharding, PartitionSpec

from dynamics import tree
from dynamics.errors import UserError
from dynamics.model.sharding import MeshShape, make_mesh
from dynamics.train.checkpoint import MANIFEST, Checkpointer, load_params, read_manifest, save_params
from train.tiny import fresh, model, target


def state(value: float = 1.0) -> dict:
    return {
        "model": {"w": jnp.full((64, 8), value) + jnp.arange(8.0), "half": jnp.arange(6, dtype=jnp.bfloat16) * value},
        "step": jnp.int32(3),
    }


def saved(folder: Path, steps: dict[int, float], **settings) -> Checkpointer:
    checkpointer = Checkpointer(folder, config="c0ffee", **settings)
    for step, value in steps.items():
        checkpointer.save(step, state(value), {"seed": 5, "step": step})
    checkpointer.wait()
    return checkpointer


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_is_saved_is_restored_bit_for_bit_with_its_meta(tmp_path):
    restored = saved(tmp_path, {1: 0.1, 2: 0.2}).restore_latest(state())
    assert restored.step == 2
    assert restored.meta == {"seed": 5, "step": 2}
    assert restored.walked_back == ()
    assert tree.tree_digest(restored.state) == tree.tree_digest(state(0.2))


def test_the_state_may_be_given_away_while_it_is_being_saved(tmp_path):
    eat = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    with Checkpointer(tmp_path, config="c0ffee") as checkpointer:
        given = state(0.7)
        checkpointer.save(1, given)
        jax.block_until_ready(eat(given))
        checkpointer.wait()
        assert tree.tree_digest(checkpointer.restore_latest(state()).state) == tree.tree_digest(state(0.7))


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(fsdp=4), MeshShape()], ids=str)
def test_a_training_state_is_restored_bit_exact_onto_another_mesh(tmp_path, shape):
    source = fresh(mesh=make_mesh(MeshShape(data=4, fsdp=2)))
    with Checkpointer(tmp_path, config="c0ffee") as checkpointer:
        checkpointer.save(0, source)
        mesh = make_mesh(shape)
        restored = checkpointer.restore_latest(target(mesh)).state
    assert tree.tree_digest(restored) == tree.tree_digest(source)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target(mesh)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "no manifest", "torn manifest", "flipped manifest", "no arrays"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_newest_sound_one_used(tmp_path, damage):
    checkpointer = saved(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3}, keep=3)
    folder = tmp_path / "00000003"
    manifest = folder / MANIFEST
    if damage == "flip":
        flip_a_bit(largest_file(folder / "arrays"))
    elif damage == "truncate":
        os.truncate(largest_file(folder / "arrays"), 100)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        os.truncate(manifest, 200)
    elif damage == "flipped manifest":
        manifest.write_text(manifest.read_text().replace('"seed": 5', '"seed": 6'))
    else:
        shutil.rmtree(folder / "arrays")
    restored = checkpointer.restore_latest(state())
    assert restored.step == 2
    assert tree.tree_digest(restored.state) == tree.tree_digest(state(0.2))
    assert len(restored.walked_back) == 1
    assert (tmp_path / "damaged-00000003" / "reason.txt").read_text().strip() == restored.walked_back[0]
    assert checkpointer.steps() == [1, 2]
    checkpointer.save(3, state(0.3))  # the run goes on, and makes the step again
    assert checkpointer.restore_latest(state()).step == 3


def test_a_flip_of_any_single_byte_of_the_arrays_never_restores_other_values(tmp_path):
    saved(tmp_path / "run", {1: 0.1}).close()
    victim = largest_file(tmp_path / "run" / "00000001" / "arrays")
    for at in np.linspace(0.0, 0.99, 8):
        copy = tmp_path / f"copy-{at:.2f}"
        shutil.copytree(tmp_path / "run", copy)
        flip_a_bit(copy / victim.relative_to(tmp_path / "run"), at)
        restored = Checkpointer(copy, config="c0ffee").restore_latest(state())
        assert restored.state is None or tree.tree_digest(restored.state) == tree.tree_digest(state(0.1))


def test_when_nothing_is_sound_the_run_starts_over_and_every_reason_is_counted(tmp_path):
    checkpointer = saved(tmp_path, {1: 0.1, 2: 0.2})
    for step in (1, 2):
        flip_a_bit(largest_file(tmp_path / f"{step:08d}" / "arrays"))
    restored = checkpointer.restore_latest(state())
    assert restored.state is None
    assert restored.step == 0
    assert [reason.split(":")[0] for reason in restored.walked_back] == ["step 2", "step 1"]
    assert checkpointer.restore_latest(state()).walked_back == ()  # set aside: not counted twice
    checkpointer.save(2, state())
    checkpointer.wait()
    (tmp_path / "00000002" / MANIFEST).unlink()  # the same step damaged again
    assert len(checkpointer.restore_latest(state()).walked_back) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["damaged-00000001", "damaged-00000002", "damaged-00000002-2"]


def test_another_configuration_is_refused_with_both_fingerprints(tmp_path):
    saved(tmp_path, {1: 0.1}).close()
    with pytest.raises(UserError, match=r"configuration c0ffee, this is configuration decaf"):
        Checkpointer(tmp_path, config="decaf").restore_latest(state())
    assert (tmp_path / "00000001").is_dir()


def test_another_model_is_refused_by_the_name_of_its_array(tmp_path):
    checkpointer = saved(tmp_path, {1: 0.1})
    other = state()
    other["model"]["w"] = jnp.zeros((64, 9))
    with pytest.raises(UserError, match=r"model/w is float32\[64, 8\] there and float32\[64, 9\] here"):
        checkpointer.restore_latest(other)
    assert checkpointer.steps() == [1]


def test_the_newest_and_the_permanent_steps_are_kept(tmp_path):
    with Checkpointer(tmp_path, config="c0ffee", keep=2) as checkpointer:
        for step in range(1, 7):
            checkpointer.save(step, state(step), permanent=step in (2, 5))
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
        assert checkpointer.restore(2, state())[0]["model"]["w"][0, 0] == 2.0
        with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[2, 5, 6\]"):
            checkpointer.restore(3, state())


def test_what_a_kill_left_of_a_save_is_ignored_and_swept_away(tmp_path):
    checkpointer = saved(tmp_path, {1: 0.1})
    shutil.copytree(tmp_path / "00000001", tmp_path / "tmp-00000002-99")
    (tmp_path / "tmp-00000002-99" / MANIFEST).unlink()
    assert checkpointer.restore_latest(state()).step == 1
    checkpointer.save(2, state())
    checkpointer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_no_checkpoints_is_a_fresh_start(tmp_path):
    restored = Checkpointer(tmp_path / "none", config="c0ffee").restore_latest(state())
    assert (restored.state, restored.step, restored.walked_back) == (None, 0, ())
    with pytest.raises(UserError, match="keep at least 1"):
        Checkpointer(tmp_path, config="c0ffee", keep=0)


def test_meta_that_is_not_json_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="meta cannot be written as JSON"):
        Checkpointer(tmp_path, config="c0ffee").save(1, state(), {"when": object()})


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs to be root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def noise(megabytes: int) -> dict:
    return {"w": np.random.default_rng(0).normal(size=(megabytes, 2**18)).astype(np.float32)}


def test_a_full_disk_is_one_clear_error_and_leaves_earlier_checkpoints(small_disk):
    checkpointer = Checkpointer(small_disk / "run", config="c0ffee")
    checkpointer.save(1, noise(1))
    checkpointer.save(2, noise(3))
    with pytest.raises(UserError, match=r"cannot save step 2 .*no space left.*3.0 MiB.*intact \(steps \[1\]\)"):
        checkpointer.wait()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["00000001"]
    assert checkpointer.restore_latest(noise(1)).step == 1
    with pytest.raises(UserError, match="no space left"):
        save_params(small_disk / "final", noise(3), config="c0ffee")
    assert not (small_disk / "final").exists()


def test_a_read_only_folder_is_one_clear_error_and_still_restores(small_disk):
    with saved(small_disk, {1: 0.1, 2: 0.2}):
        pass
    flip_a_bit(largest_file(small_disk / "00000002" / "arrays"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    checkpointer = Checkpointer(small_disk, config="c0ffee")
    restored = checkpointer.restore_latest(state())
    assert restored.step == 1
    assert "left in place" in restored.walked_back[0]
    checkpointer.save(3, state())
    with pytest.raises(UserError, match=r"cannot save step 3 .*read-only"):
        checkpointer.close()


def test_finished_parameters_are_saved_replaced_and_read_back(tmp_path):
    for seed in (0, 1):
        save_params(tmp_path / "final", model(seed), {"size": "0.2m"}, config="c0ffee")
    params, manifest = load_params(tmp_path / "final", target().model)
    assert tree.tree_digest(params) == tree.tree_digest(model(1))
    assert (manifest.config, manifest.meta) == ("c0ffee", {"size": "0.2m"})
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    flip_a_bit(largest_file(tmp_path / "final" / "arrays"))
    with pytest.raises(UserError, match=r"is damaged: .*run the training again"):
        load_params(tmp_path / "final", target().model)
    (tmp_path / "final" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"is damaged: manifest.json is missing"):
        read_manifest(tmp_path / "final")
    with pytest.raises(UserError, match="no checkpoint folder"):
        load_params(tmp_path / "nowhere", target().model)


def test_the_model_can_be_read_out_of_a_training_checkpoint(tmp_path):
    with Checkpointer(tmp_path, config="c0ffee") as checkpointer:
        checkpointer.save(4, fresh())
    params, _ = load_params(tmp_path / "00000004", target().model, part="model")
    assert tree.tree_digest(params) == tree.tree_digest(model())


def test_the_files_are_named_after_the_parameters(tmp_path):
    save_params(tmp_path / "final", model(), config="c0ffee")
    names = set(read_manifest(tmp_path / "final").arrays)
    assert {"embedding", "blocks/query", "blocks/value", "final_norm"} <= names
    assert json.loads((tmp_path / "final" / MANIFEST).read_text())["format"] == 2


def test_arrays_land_on_the_devices_their_target_names(tmp_path):
    save_params(tmp_path / "final", state(), config="c0ffee")
    mesh = make_mesh(MeshShape(data=8))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
        state(),
    )
    params, _ = load_params(tmp_path / "final", wanted)
    assert len(params["model"]["w"].sharding.device_set) == 8


def test_saves_from_several_threads_at_once_all_succeed(tmp_path):
    with ThreadPoolExecutor(3) as threads:
        done = [
            threads.submit(save_params, tmp_path / str(i), {"a": np.full(9, i, np.float32)}, config="c")
            for i in range(12)
        ]
    assert [future.exception() for future in done] == [None] * 12
    for i in range(12):
        assert load_params(tmp_path / str(i), {"a": np.zeros(9, np.float32)})[0]["a"][0] == i


def test_a_step_that_is_there_already_is_not_saved_again(tmp_path):
    """As when a signal comes right after the step that was due to be saved, whose save is still under way."""
    with Checkpointer(tmp_path, config="c0ffee") as checkpointer:
        checkpointer.save(2, state(0.2))
        checkpointer.save(2, state(0.3))
        assert tree.tree_digest(checkpointer.restore_latest(state()).state) == tree.tree_digest(state(0.2))


def test_a_checkpoint_of_the_first_format_is_still_read_and_verified(tmp_path):
    saved(tmp_path, {1: 0.1, 2: 0.2}).close()
    for step, value in ((1, 0.1), (2, 0.3)):  # the digests of step 2 are of other values than its arrays
        path = tmp_path / f"{step:08d}" / MANIFEST
        data = {name: part for name, part in json.loads(path.read_text()).items() if name not in ("format", "digest")}
        for name, leaf in tree.named_leaves(state(value)).items():
            data["arrays"][name]["digest"] = tree.digest(leaf)
        own = xxhash.xxh3_128(json.dumps(data, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(data | {"format": 1, "digest": own}))
    restored = Checkpointer(tmp_path, config="c0ffee").restore_latest(state())
    assert restored.step == 1
    assert tree.tree_digest(restored.state) == tree.tree_digest(state(0.1))
    assert "do not match their digest" in restored.walked_back[0]
