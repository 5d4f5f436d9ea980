"""What must hold for the network whatever its size: segments never meet, time flows forward, no knob is dead."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals
from jax._src.config import enable_compilation_cache
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from dynamics.losses.sft import SFT
from dynamics.model.llama import (
    REMATS,
    LinearScaling,
    Llama3Scaling,
    LlamaConfig,
    abstract,
    apply_block,
    init,
    rematerialised,
    rope_angles,
    saved_bytes_per_token,
)
from dynamics.model.sharding import (
    ROW_AXES,
    MeshShape,
    activate,
    batch_shardings,
    make_mesh,
    num_row_shards,
    shardings_for,
)

TINY = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
    attention_block=4,
)  # fmt: skip
KINDS = ("reference", "blocks", "fused")  # Splash takes longer rows: tests/model/test_attention.py

# Two documents and padding in the first row, padding between documents in the second.
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0], [1, 1, 1, 0, 0, 2, 2, 2, 2, 3, 3, 3]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 0, 0, 0, 1, 2, 3, 0, 1, 2]], np.int32)
TOKENS = np.random.default_rng(0).integers(0, 32, SEGMENTS.shape).astype(np.int32)


@jax.jit
def logits(model, tokens):
    return model(tokens, jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS)) @ model.head


def tiny(**changes):
    return init(dataclasses.replace(TINY, **changes), jax.random.key(1))


@pytest.mark.parametrize("kind", KINDS)
def test_perturbing_a_segment_leaves_every_other_bit_equal(kind):
    model = tiny(attention=kind)
    before = np.asarray(logits(model, TOKENS))
    for row in range(2):
        for segment in np.unique(SEGMENTS[row]):  # 0 too: padding has no influence
            inside = np.zeros_like(SEGMENTS, bool)
            inside[row] = SEGMENTS[row] == segment
            after = np.asarray(logits(model, np.where(inside, (TOKENS + 7) % 32, TOKENS)))
            np.testing.assert_array_equal(after[~inside], before[~inside])
            assert np.abs(after[inside] - before[inside]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_in_a_packed_row_equals_the_document_alone(kind):
    model = tiny(attention=kind)
    packed = logits(model, TOKENS)[0, 5:11]
    alone = jax.jit(
        lambda m: m(jnp.asarray(TOKENS[:1, 5:11]), jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32)) @ m.head
    )(model)
    np.testing.assert_allclose(packed, alone[0], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_from_the_past_to_the_future(kind):
    model = tiny(attention=kind)
    steps, segments = jnp.arange(10)[None], jnp.ones((1, 10), jnp.int32)

    def hidden(embeddings):
        chosen = jax.tree.map(lambda x: x, model)
        chosen.embedding[...] = embeddings
        return chosen(steps, steps, segments)[0].sum(-1)

    # Token i is row i of the embedding, so the Jacobian tells which input each output depends on.
    jacobian = jax.jit(jax.jacrev(hidden))(model.embedding[...])[:, :10]
    depends = np.abs(jacobian).max(axis=-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((10, 10), bool)))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gives_finite_hidden_states_and_gradients(kind):
    def total(model):
        return jnp.sum(model(jnp.asarray(TOKENS), jnp.asarray(POSITIONS), jnp.zeros_like(SEGMENTS)) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(total))(tiny(attention=kind))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_every_remat_policy_gives_the_same_loss_and_gradient(scan):
    def loss(model):
        return jnp.sum(jnp.sin(model(jnp.asarray(TOKENS), jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))))

    results = {}
    for remat in REMATS:
        results[remat] = jax.jit(jax.value_and_grad(loss))(tiny(remat=remat, scan_layers=scan))
    for remat, result in results.items():
        for mine, plain in zip(jax.tree.leaves(result), jax.tree.leaves(results["none"]), strict=True):
            np.testing.assert_allclose(mine, plain, atol=1e-5, err_msg=remat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", REMATS)
def test_the_table_of_saved_bytes_is_what_jax_saves(remat, dtype):
    config = dataclasses.replace(TINY, remat=remat, compute_dtype=dtype, scan_layers=True)
    rows, length = 3, 10
    x = jax.ShapeDtypeStruct((rows, length, config.d_model), dtype)
    block = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), abstract(config).blocks)
    rope, segments = rope_angles(config, jnp.zeros((rows, length), jnp.int32)), jnp.ones((rows, length), jnp.int32)

    def run(x, block):
        return apply_block(block, x, rope, segments)

    kept = saved_residuals(rematerialised(run, config), x, block)
    per_token = [
        aval.size * aval.dtype.itemsize / (rows * length)
        for aval, source in kept
        if aval.shape[:1] in ((rows,), (rows * length,)) and "constant" not in source
    ]
    waiting = 0 if remat == "offload" else sum(per_token)
    assert saved_bytes_per_token(config) == waiting
    assert saved_bytes_per_token(config, tensor=2) <= waiting


CHANGES = {
    "vocab_size": 40, "d_model": 24, "num_layers": 3, "num_heads": 2, "num_kv_heads": 4, "head_dim": 8, "d_ff": 32,
    "rope_theta": 500_000.0, "rope_scaling": LinearScaling(factor=4.0), "rms_eps": 1e-5, "tied_head": True,
    "param_dtype": "bfloat16", "compute_dtype": "bfloat16", "remat": "dots", "scan_layers": True,
    "attention": "reference", "attention_block": 6,
}  # fmt: skip


def gradient_program(config):
    index = jnp.array([[0, 3, 7]])
    batch = {"tokens": TOKENS, "positions": POSITIONS, "segments": SEGMENTS, "trained_index": index}
    batch |= {"trained_targets": index, "trained_weights": jnp.ones((1, 3))}
    return jax.jit(jax.grad(SFT(), has_aux=True)).lower(abstract(config), batch).as_text()


def test_every_field_of_the_model_changes_the_program():
    named = {field.name for field in dataclasses.fields(LlamaConfig)} - {"name"}  # a label for reports
    assert named == set(CHANGES), "a new field needs a line here"
    scaled = dataclasses.replace(TINY, rope_scaling=LinearScaling(factor=8.0))
    llama3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64)
    wide = dataclasses.replace(TINY, head_dim=16)  # has frequencies between the two bounds
    extra = [dataclasses.replace(TINY, remat=remat) for remat in REMATS if remat not in ("none", CHANGES["remat"])]
    extra += [scaled, dataclasses.replace(wide, rope_scaling=llama3)]
    extra += [
        dataclasses.replace(wide, rope_scaling=dataclasses.replace(llama3, **change))
        for change in ({"low_freq_factor": 2.0}, {"high_freq_factor": 8.0}, {"original_length": 32}, {"factor": 2.0})
    ]
    programs = [gradient_program(config) for config in (TINY, *extra)]
    programs += [gradient_program(dataclasses.replace(TINY, **{name: value})) for name, value in CHANGES.items()]
    assert len(set(programs)) == len(programs)


# Names apart on the mesh axes, equal in meaning: the same losses and gradients on every mesh.
MESHES = [
    MeshShape(),
    MeshShape(data=8),
    MeshShape(fsdp=8),
    MeshShape(data=2, fsdp=2, tensor=2),
    MeshShape(fsdp=2, tensor=4),
    MeshShape(sequence=4, fsdp=2),
    MeshShape(fsdp=2, sequence=2, tensor=2),
    MeshShape(dcn=2, fsdp=2, tensor=2),
    MeshShape(dcn=2, data=2, sequence=2),
]


# Unrolled, the last layer goes on with trained positions only: another program, held to the same law on three meshes.
WAYS = [(shape, True) for shape in MESHES] + [(MESHES[index], False) for index in (1, 3, 6)]


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(2)
    # Key/value heads are fewer than the devices that share a row where tensor x sequence is 8: those repeat them.
    config = dataclasses.replace(TINY, num_heads=8, num_kv_heads=4, scan_layers=True)
    segments = np.tile(SEGMENTS, (4, 1))
    trained = [np.sort(rng.choice(12, 5, replace=False)) for _ in range(8)]
    return init(config, jax.random.key(3)), rng.integers(0, 32, (8, 12)).astype(np.int32), segments, trained


def grouped(trained, groups):
    """trained_index of 8 rows in `groups` groups: flat within the group."""
    rows = 8 // groups
    flat = [np.concatenate([trained[g * rows + r] + 12 * r for r in range(rows)]) for g in range(groups)]
    return np.stack(flat).astype(np.int32)


@pytest.mark.parametrize(("shape", "scanned"), WAYS, ids=str)
def test_every_mesh_gives_the_same_loss_and_gradients(wide, shape, scanned):
    model, tokens, segments, trained = wide
    model = init(dataclasses.replace(model.config, scan_layers=scanned), jax.random.key(3))
    mesh = make_mesh(shape)
    index = grouped(trained, num_row_shards(mesh))
    batch = {"tokens": tokens, "positions": np.tile(POSITIONS, (4, 1)), "segments": segments, "trained_index": index}
    batch |= {"trained_targets": index % 32, "trained_weights": np.ones(index.shape, np.float32)}
    plain = grouped(trained, 1)
    oracle_batch = batch | {"trained_index": plain, "trained_weights": np.ones(plain.shape, np.float32)}
    oracle_batch["trained_targets"] = index.reshape(1, -1) % 32
    (expected, _), expected_gradient = jax.jit(jax.value_and_grad(SFT(), has_aux=True))(model, oracle_batch)

    micro = {name: array[None] for name, array in batch.items()}
    placed = jax.device_put(micro, batch_shardings(micro, mesh))
    spread = jax.device_put(model, shardings_for(model, mesh))

    @jax.jit
    def step(model, batch):
        with activate(mesh):
            return jax.value_and_grad(SFT(), has_aux=True)(model, {name: array[0] for name, array in batch.items()})

    (loss, _), gradient = step(spread, placed)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))


def collectives(program):
    """(kind, element types and dimensions, where it comes from) of everything that a compiled program moves."""
    pattern = r"= (\S+|\(.*?\)) (all-[a-z-]+|reduce-scatter|collective-permute)(?:-start)?\(.*op_name=\"(.*?)\""
    found = re.findall(pattern, program)
    return [(kind, re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes), name) for shapes, kind, name in found]


def compiled_gradient(config, mesh, rows, length):
    """The gradient program of packed rows, from shapes alone: devices that are only described will do."""

    def loss(model, tokens, segments):
        with activate(mesh):
            return jnp.sum(model(tokens, tokens, segments).astype(jnp.float32) ** 2)

    model = abstract(config)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        model,
        shardings_for(model, mesh),
    )
    split = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=split)
    gradient = jax.jit(jax.grad(loss), out_shardings=shardings_for(model, mesh))
    return gradient.lower(placed, ids, ids).compile().as_text()


def test_a_layer_gathers_weights_and_never_positions():
    config = dataclasses.replace(TINY, scan_layers=True, remat="full")
    program = compiled_gradient(config, make_mesh(MeshShape(fsdp=4, sequence=2)), rows=8, length=20)
    inside = [(kind, shapes) for kind, shapes, name in collectives(program) if "while/body" in name]
    assert {kind for kind, _ in inside} == {"all-gather", "all-reduce", "all-to-all"}
    dimensions = [dims for kind, shapes in inside if kind == "all-gather" for _, dims in shapes]
    gathered = {int(size) for dims in dimensions for size in dims.split(",")}
    assert gathered
    assert not gathered & {20, 40, 160}  # neither a row, nor the rows of a device, nor of the whole batch, end to end


def test_on_tpu_splash_runs_and_weights_travel_in_the_type_they_are_used_in():
    """Compiled for eight TPUs that are not here. CPU programs cannot show it: they compute bfloat16 in float32."""
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'dynamics[plan]'")
    config = dataclasses.replace(
        TINY, d_model=256, d_ff=512, head_dim=64, compute_dtype="bfloat16", scan_layers=True, remat="attention"
    )
    # Not cached: a program for a machine that is not here can be stored but not read back.
    with pytest.MonkeyPatch.context() as environment, enable_compilation_cache(False):
        environment.setenv("TPU_SKIP_MDS_QUERY", "1")  # or it waits for a metadata server
        environment.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
        program = compiled_gradient(config, make_mesh(MeshShape(fsdp=8), devices), rows=8, length=128)
    assert "tpu_custom_call" in program
    moved = [shapes for kind, shapes, name in collectives(program) if "while/body" in name and kind != "all-reduce"]
    assert moved
    assert {kind for shapes in moved for kind, dims in shapes if dims.count(",")} == {"bf16"}
