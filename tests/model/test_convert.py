"""Weights in and out: what is read is what lies in the files, on any mesh; what is written is what was read."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from parity.toys import CONFIGS, weights, write_toy
from safetensors.numpy import load_file

from dynamics.data.template import CHATML, DOIT
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.model.convert import (
    Params,
    export_model,
    import_model,
    is_model_folder,
    load_model,
    read_config,
    tokenizer_path,
    verify,
)
from dynamics.model.hf_config import differences
from dynamics.model.sharding import MeshShape, make_mesh
from dynamics.tree import named_leaves

GROUPED, TIED, HALF = CONFIGS["llama2_grouped"], CONFIGS["llama3_tied"], CONFIGS["llama3_bfloat16"]


def stored(folder):
    """{name: array} of all safetensors of a folder, by safetensors' own reader."""
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def leaves(model):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_import_then_export_is_byte_identical(name, num_files, tmp_path):
    config = CONFIGS[name]
    source = write_toy(tmp_path / "hf", config, num_files=num_files)
    first = import_model(source, tmp_path / "model", max_shard=10_000)
    second = export_model(tmp_path / "model", tmp_path / "out")
    assert_same(stored(tmp_path / "model"), weights(config))
    assert_same(stored(tmp_path / "out"), weights(config))
    assert first.num_tensors == second.num_tensors == second.num_verified == len(weights(config))
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= config.items()


def test_files_are_split_at_the_size_asked_for_and_indexed(tmp_path):
    source = write_toy(tmp_path / "hf", GROUPED)
    done = import_model(source, tmp_path / "model", max_shard=20_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.num_bytes == sum(a.nbytes for a in weights(GROUPED).values())
    files = {name: load_file(tmp_path / "model" / name) for name in set(index["weight_map"].values())}
    assert len(files) > 1
    assert all(sum(array.nbytes for array in file.values()) <= 20_000 for file in files.values())
    assert all(name in files[file] for name, file in index["weight_map"].items())


@pytest.mark.parametrize("shape", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}])
@pytest.mark.parametrize("config", [GROUPED, TIED, HALF], ids=["grouped", "tied", "half"])
def test_every_mesh_holds_the_same_bits(shape, config, tmp_path):
    folder = write_toy(tmp_path / "hf", config, num_files=2)
    mesh = make_mesh(MeshShape(**shape))
    loaded = load_model(folder, mesh=mesh)
    assert_same(leaves(loaded), leaves(load_model(folder)))
    split = named_leaves(loaded)["blocks/gate"].addressable_shards[0].data.shape
    assert split == (2, 32 // mesh.shape["fsdp"], 48 // mesh.shape["tensor"])


def test_new_rows_are_the_mean_of_the_old_in_any_split_and_type(tmp_path):
    folder = write_toy(tmp_path / "hf", HALF)
    config = dataclasses.replace(read_config(folder), vocab_size=72)
    whole = leaves(load_model(folder, config))
    assert_same(leaves(load_model(folder, config, mesh=make_mesh(MeshShape(fsdp=4, tensor=2)))), whole)
    for name, theirs in (("embedding", "model.embed_tokens.weight"), ("untied_head", "lm_head.weight")):
        table, old = whole[name] if name == "embedding" else whole[name].T, weights(HALF)[theirs]
        mean = old.astype(np.float32).mean(axis=0).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(table[:64], old)
        np.testing.assert_array_equal(table[64:], np.tile(mean, (8, 1)))


def test_a_loaded_model_may_be_given_away_to_an_update(tmp_path):
    model = load_model(write_toy(tmp_path / "hf", GROUPED), mesh=make_mesh(MeshShape(data=8)))
    expected = leaves(model)
    doubled = jax.jit(lambda model: jax.tree.map(lambda leaf: 2 * leaf, model), donate_argnums=0)(model)
    for name, leaf in named_leaves(doubled).items():
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, 2 * expected[name], err_msg=name)


def test_types_are_cast_when_asked_and_otherwise_kept(tmp_path):
    source = write_toy(tmp_path / "hf", GROUPED)
    import_model(source, tmp_path / "half", dtype="bfloat16")
    expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights(GROUPED).items()}
    assert_same(stored(tmp_path / "half"), expected)
    config = read_config(tmp_path / "half")
    assert config.param_dtype == "bfloat16"
    wide = load_model(tmp_path / "half", dataclasses.replace(config, param_dtype="float32"))
    np.testing.assert_array_equal(leaves(wide)["embedding"], expected["model.embed_tokens.weight"].astype(np.float32))


@pytest.mark.parametrize("config", [GROUPED, TIED], ids=["untied", "tied"])
def test_our_own_parameters_are_exported_and_read_back(config, tmp_path, tokenizer):
    model = load_model(write_toy(tmp_path / "hf", config | {"vocab_size": tokenizer.vocab_size}))
    out = tmp_path / "out"
    export_model(Params.of(model, tokenizer, max_length=64), out)
    assert_same(leaves(load_model(out)), leaves(model))
    assert differences(read_config(out), model.config) == []
    assert is_model_folder(out)
    assert Tokenizer.load(tokenizer_path(out)) == tokenizer
    described = json.loads((out / "config.json").read_text())
    assert (described["max_position_embeddings"], described["eos_token_id"]) == (64, tokenizer.eos_id)
    assert json.loads((out / "generation_config.json").read_text())["pad_token_id"] == tokenizer.pad_id


def test_an_export_from_a_mesh_is_the_same_files(tmp_path):
    folder = write_toy(tmp_path / "hf", TIED)
    for name, mesh in (("one", None), ("many", make_mesh(MeshShape(fsdp=4, tensor=2)))):
        export_model(Params.of(load_model(folder, mesh=mesh), None, max_length=64), tmp_path / name)
    assert_same(stored(tmp_path / "many"), stored(tmp_path / "one"))
    assert_same(stored(tmp_path / "one"), weights(TIED))


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    source = write_toy(tmp_path / "hf", GROUPED)  # fewer rows than the tokenizer has ids
    tokenizer.save(source / "tokenizer.model")
    with pytest.raises(UserError, match=r"390 ids and the model [0-9]+ rows: they belong to different models"):
        import_model(source, tmp_path / "model", template=CHATML)
    (source / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"hf: .*tokenizer.model"):
        import_model(source, tmp_path / "model")


def test_a_templates_tokens_get_rows_of_their_own(tmp_path, tokenizer):
    rows = tokenizer.vocab_size
    source = write_toy(tmp_path / "hf", GROUPED | {"vocab_size": rows}, weights(GROUPED | {"vocab_size": rows}))
    tokenizer.save(source / "tokenizer.model")
    done = import_model(source, tmp_path / "model", template=CHATML, vocab_multiple=8)
    grown = Tokenizer.load(tokenizer_path(tmp_path / "model"), specials=())
    assert grown.vocab_size == rows + 2  # <|im_start|> and <|im_end|>; the trained tokenizer has the others
    assert done.config.vocab_size == read_config(tmp_path / "model").vocab_size == -(-(rows + 2) // 8) * 8
    assert done.num_new_rows == done.config.vocab_size - rows
    old, new = weights(GROUPED | {"vocab_size": rows}), stored(tmp_path / "model")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(new[name][:rows], old[name])
        np.testing.assert_allclose(new[name][rows:], np.tile(old[name].mean(axis=0), (done.num_new_rows, 1)), atol=1e-6)
    assert verify(tmp_path / "model") == len(old)


def test_rows_of_padding_that_become_tokens_start_at_the_mean_and_the_others_stay(tmp_path, tokenizer):
    known = tokenizer.vocab_size
    config = GROUPED | {"vocab_size": known + 10}
    source = write_toy(tmp_path / "hf", config, weights(config))
    tokenizer.save(source / "tokenizer.model")
    done = import_model(source, tmp_path / "model", template=CHATML)
    assert (done.config.vocab_size, done.num_new_rows) == (known + 10, 2)
    old, new = weights(config)["lm_head.weight"], stored(tmp_path / "model")["lm_head.weight"]
    np.testing.assert_array_equal(new[:known], old[:known])
    np.testing.assert_allclose(new[known : known + 2], np.tile(old[:known].mean(axis=0), (2, 1)), atol=1e-6)
    np.testing.assert_array_equal(new[known + 2 :], old[known + 2 :])


def test_a_template_that_adds_nothing_changes_nothing(tmp_path, tokenizer):
    config = GROUPED | {"vocab_size": tokenizer.vocab_size}
    source = write_toy(tmp_path / "hf", config, weights(config))
    tokenizer.save(source / "tokenizer.model")
    done = import_model(source, tmp_path / "model", template=DOIT)
    assert done.num_new_rows == 0
    assert_same(stored(tmp_path / "model"), weights(config))
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == tokenizer.model


def test_useless_tensors_are_named_and_left_out(tmp_path):
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    arrays = weights(TIED)
    arrays |= {frequencies: np.ones(4, np.float32), "lm_head.weight": arrays["model.embed_tokens.weight"].copy()}
    done = import_model(write_toy(tmp_path / "hf", TIED, arrays), tmp_path / "model")
    assert set(done.left_out) == {frequencies, "lm_head.weight"}
    assert_same(stored(tmp_path / "model"), weights(TIED))


@pytest.mark.parametrize(("num_layers", "scanned"), [(15, False), (16, True)])
def test_deep_models_are_scanned(num_layers, scanned, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GROUPED | {"num_hidden_layers": num_layers}))
    assert (read_config(tmp_path).scan_layers, read_config(tmp_path).remat) == (scanned, "none")


def test_an_import_takes_less_memory_than_one_file_of_it(tmp_path):
    """A process of its own, whose peak before and after is read from the kernel; pages of files count."""
    num_files, file_bytes = 6, 48 * 2**20
    program = PROGRAM.format(tests=str(Path(__file__).parent.parent), folder=str(tmp_path), num_files=num_files)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["bytes"] > 0.95 * num_files * file_bytes
    assert found["import"] < 0.5 * file_bytes
    assert found["export"] < 0.5 * file_bytes
    parameter = 96 * 704 * 256 * 4  # the largest, of all layers
    # The model itself, one parameter on the host, one on its way to the device, and what the allocator keeps of one.
    assert found["load"] < found["bytes"] + 3 * parameter


PROGRAM = r"""
import json, pathlib, re, sys
sys.path.insert(0, {tests!r})
import jax, numpy as np
from parity.toys import CONFIGS, shapes, write_toy
from dynamics.model.convert import export_model, import_model, load_model

def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

folder = pathlib.Path({folder!r})
config = CONFIGS["llama2_grouped"] | dict(hidden_size=256, intermediate_size=704, num_hidden_layers=96, vocab_size=8000)
arrays = {{name: np.full(shape, 0.5, np.float32) for name, shape in shapes(config).items()}}
write_toy(folder / "hf", config, arrays, num_files={num_files})
num_bytes = sum(array.nbytes for array in arrays.values())
del arrays
jax.block_until_ready(jax.numpy.ones(3))
found = dict(bytes=num_bytes)
for name, do in (
    ("import", lambda: import_model(folder / "hf", folder / "model", max_shard=48 * 2**20)),
    ("export", lambda: export_model(folder / "model", folder / "out", max_shard=48 * 2**20)),
    ("load", lambda: jax.block_until_ready(load_model(folder / "out"))),
):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak()
    kept = do()
    found[name] = peak() - before
print(json.dumps(found))
"""


@pytest.mark.slow  # two processes that start jax: 10 s
def test_two_processes_hold_together_what_one_holds(tmp_path):
    """Each reads the slices of its own devices; fsdp runs across the processes, tensor inside each."""
    folder = write_toy(tmp_path / "hf", HALF)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(number), folder, tmp_path / f"{number}.npz"], env=environment
        )
        for number in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    expected = leaves(load_model(folder, dataclasses.replace(read_config(folder), vocab_size=72)))
    covered = {name: np.zeros(leaf.shape, bool) for name, leaf in expected.items()}
    for number in range(2):
        with np.load(tmp_path / f"{number}.npz") as file:
            for key, bits in file.items():
                name, _, index = key.partition("@")
                part = tuple(slice(*bounds) for bounds in json.loads(index))
                np.testing.assert_array_equal(bits, expected[name][part].view(np.uint16), err_msg=key)
                covered[name][part] = True
    assert all(seen.all() for seen in covered.values())


TOGETHER = """
import dataclasses, json, sys
import jax, numpy as np
address, number, folder, out = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(number))
from dynamics.model.convert import load_model, read_config
from dynamics.model.sharding import MeshShape, make_mesh
from dynamics.tree import named_leaves
config = dataclasses.replace(read_config(folder), vocab_size=72)
model = load_model(folder, config, mesh=make_mesh(MeshShape(fsdp=4, tensor=2)))
found = {}
for name, leaf in named_leaves(model).items():
    assert name.endswith("norm") or not leaf.is_fully_addressable
    for shard in leaf.addressable_shards:
        bounds = [part.indices(size)[:2] for part, size in zip(shard.index, leaf.shape)]
        found[f"{name}@{json.dumps(bounds)}"] = np.asarray(shard.data).view(np.uint16)
np.savez(out, **found)
"""
