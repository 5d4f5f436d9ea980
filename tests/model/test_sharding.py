"""The mesh, the one table, and what is refused."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import PartitionSpec

from dynamics.errors import UserError
from dynamics.model.llama import SIZES, LlamaConfig, abstract, init
from dynamics.model.sharding import (
    MeshShape,
    abstract_mesh,
    activate,
    batch_shardings,
    check_sharding,
    constrain,
    device_bytes,
    make_mesh,
    shardings_for,
)
from dynamics.train.optimizer import DOIT
from dynamics.train.step import abstract_state
from dynamics.tree import named_leaves

TINY = LlamaConfig(
    name="tiny", vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24
)
MESH = MeshShape(data=2, fsdp=2, tensor=2)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshShape(data=-1, tensor=2)).shape) == {
        "dcn": 1, "data": 4, "fsdp": 1, "sequence": 1, "tensor": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeshShape(data=0), "mesh data=0: each size is a whole number >= 1"),
        (lambda: MeshShape(data=-1, fsdp=-1), "at most one may be -1"),
        (lambda: make_mesh(MeshShape(data=16)), "mesh data=16 needs 16 devices and there are 8"),
        (lambda: make_mesh(MeshShape(data=-1, fsdp=3)), "8 is not a multiple of 3"),
    ],
)
def test_impossible_meshes_say_why(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_parameters_and_optimizer_state_follow_one_table():
    mesh, model = make_mesh(MESH), abstract(TINY)
    state = jax.eval_shape(optax.adamw(1e-3).init, model)
    placed = named_leaves(shardings_for({"model": model, "state": state}, mesh))
    assert placed["model/blocks/query"].spec == PartitionSpec(None, ("fsdp", "sequence"), "tensor", None)
    assert placed["model/embedding"].spec == PartitionSpec(("tensor", "sequence"), "fsdp")
    for name, sharding in placed.items():
        if "mu/" in name:
            assert sharding.spec == placed["model/" + name.split("mu/")[1]].spec
        if name.endswith("count"):
            assert sharding.spec == PartitionSpec()


def test_members_of_a_population_keep_their_dimension_whole():
    mesh = make_mesh(MESH)
    stacked = jax.eval_shape(lambda model: jax.tree.map(lambda x: jax.numpy.stack([x, x]), model), abstract(TINY))
    spec = named_leaves(shardings_for(stacked, mesh))["embedding"].spec
    assert spec == PartitionSpec(None, ("tensor", "sequence"), "fsdp")


def test_a_dimension_that_does_not_divide_is_named():
    odd = dataclasses.replace(TINY, num_heads=6, num_kv_heads=6)
    with pytest.raises(
        UserError,
        match=r"parameter blocks/key has 6 kv_heads, not divisible by mesh axis tensor of size 4; use .* of 2",
    ):
        shardings_for(abstract(odd), make_mesh(MeshShape(tensor=4)))


# Of 64, 128 and 256 devices; whole copies (data, dcn) and every way to split parameters.
LARGE_MESHES = [
    (64, MeshShape(fsdp=64)),
    (64, MeshShape(fsdp=16, tensor=4)),
    (128, MeshShape(data=2, fsdp=64)),
    (128, MeshShape(fsdp=16, sequence=2, tensor=4)),
    (256, MeshShape(fsdp=256)),
    (256, MeshShape(fsdp=64, sequence=4)),
    (256, MeshShape(dcn=2, fsdp=32, tensor=4)),
]


@pytest.mark.parametrize("size", ["7b", "13b", "33b"])
def test_published_models_lie_evenly_on_64_to_256_devices(size):
    state = abstract_state(abstract(SIZES[size]), DOIT)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    for num_devices, shape in LARGE_MESHES:
        mesh = abstract_mesh(shape, num_devices)
        check_sharding(state, mesh)
        even = total / (shape.fsdp * shape.sequence * shape.tensor)
        assert sum(device_bytes(state, mesh).values()) == pytest.approx(even, rel=0.05), (num_devices, shape)


def test_bytes_are_those_of_the_arrays_on_a_device():
    mesh, model = make_mesh(MESH), jax.jit(init, static_argnums=0)(TINY, jax.random.key(0))
    placed = named_leaves(jax.device_put(model, shardings_for(model, mesh)))
    assert device_bytes(model, mesh) == {name: x.addressable_shards[3].data.nbytes for name, x in placed.items()}


def test_a_published_size_that_a_mesh_cannot_split_names_the_parameter_and_a_mesh_that_works():
    message = (
        "parameter blocks/key has 52 kv_heads, not divisible by mesh axis tensor of size 8; use a mesh with tensor"
    )
    with pytest.raises(UserError, match=message + " of 4"):
        check_sharding(abstract(SIZES["33b"]), abstract_mesh(MeshShape(fsdp=32, tensor=8), 256))


@dataclasses.dataclass
class Plain:
    """A model whose author forgot logical axes for one array."""

    known: Any
    forgotten: jax.ShapeDtypeStruct


jax.tree_util.register_dataclass(Plain, ["known", "forgotten"], [])


def test_an_array_without_logical_axes_is_refused_once_it_is_large():
    model, mesh = abstract(TINY), abstract_mesh(MeshShape(data=2, fsdp=2, tensor=2), 8)
    check_sharding(Plain(model, jax.ShapeDtypeStruct((8,), np.float32)), mesh)
    message = (
        r"1,\d{3} of 2\d,\d{3} bytes \(\d\.\d%\) would lie whole on every device of mesh data=2, fsdp=2, tensor=2, "
        r"more than 2%; the largest of 4 such arrays is parameter forgotten with 1,280 bytes"
    )
    with pytest.raises(UserError, match=message):
        check_sharding(Plain(model, jax.ShapeDtypeStruct((320,), np.float32)), mesh)
    check_sharding(Plain(model, jax.ShapeDtypeStruct((320,), np.float32)), abstract_mesh(MeshShape(data=8), 8))


def test_an_axis_that_splits_no_parameter_is_refused():
    heads_only = nnx.Param(jax.ShapeDtypeStruct((4, 4), np.float32), logical_axes=("heads", "head_dim"))
    check_sharding(heads_only, abstract_mesh(MeshShape(tensor=2), 2))
    message = "mesh axis fsdp of size 2 splits no array of the 1 given; use a mesh with fsdp=1, or .*: table, embed"
    with pytest.raises(UserError, match=message):
        check_sharding(heads_only, abstract_mesh(MeshShape(fsdp=2, tensor=2), 4))


@dataclasses.dataclass(frozen=True)
class Described:
    """A device as a program meets it on a machine that is not here."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a GPU"


def test_copies_over_the_data_centre_network_are_whole_hosts():
    # Two hosts of four, listed in turn: what crosses between hosts must be `dcn`, nothing else.
    devices = [Described(number // 2 + 4 * (number % 2), number % 2, number % 2) for number in range(8)]
    mesh = make_mesh(MeshShape(dcn=2, fsdp=2, tensor=2), devices)
    assert [{device.process_index for device in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="dcn=4 would tear a process apart: 8 devices belong to 2 processes"):
        make_mesh(MeshShape(dcn=4, fsdp=2), devices)


@pytest.fixture(scope="module")
def topology():
    """Devices of TPU slices that are not here."""
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'dynamics[plan]'")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TPU_SKIP_MDS_QUERY", "1")  # or it waits for a metadata server
        environment.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
        yield lambda name, **more: topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices


def test_slices_of_tpus_lie_along_dcn_and_are_never_crossed_by_another_axis(topology):
    two = topology("v5e:2x4", num_slices=2)
    mesh = make_mesh(MeshShape(dcn=2, fsdp=8), two)
    assert [{device.slice_index for device in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"the devices lie in 2 slice\(s\), .* and the mesh has dcn=1; use dcn=2"):
        make_mesh(MeshShape(fsdp=16), two)


def test_neighbours_on_the_mesh_are_neighbours_on_the_torus(topology):
    mesh = make_mesh(MeshShape(fsdp=32, tensor=2), topology("v5p:4x4x4"))  # no torus axis is 2 long: one is split
    pairs = np.array([device.coords for device in mesh.devices.flat]).reshape(32, 2, 3)
    steps = np.abs(pairs[:, 0] - pairs[:, 1]).sum(axis=-1)
    assert set(steps.tolist()) == {1}


def test_rows_are_split_over_data_and_fsdp_or_refused():
    mesh = make_mesh(MESH)
    batch = {"tokens": np.zeros((1, 8, 4), np.int32), "trained_index": np.zeros((1, 4, 3), np.int32)}
    assert batch_shardings(batch, mesh)["tokens"].spec == PartitionSpec(None, ("dcn", "data", "fsdp"))
    with pytest.raises(
        UserError, match="batch array tokens has 6 rows a micro-batch, not divisible by the 4 row shards"
    ):
        batch_shardings({"tokens": np.zeros((1, 6, 4), np.int32)}, mesh)


def test_constraints_act_inside_an_active_mesh_only():
    mesh, x = make_mesh(MESH), np.zeros((8, 4, 2), np.float32)

    def lowered(mesh):
        def program(x):
            with activate(mesh):
                return constrain(x * 2, ("batch", "length", "channels"))

        return jax.jit(program).lower(x).as_text()

    assert "sharding_constraint" in lowered(mesh)
    assert "sharding_constraint" not in lowered(None)
    assert "sharding_constraint" not in lowered(make_mesh(MeshShape()))


def test_an_activation_that_does_not_divide_is_named():
    with (
        activate(make_mesh(MeshShape(sequence=8))),
        pytest.raises(UserError, match="an activation has 12 length, not divisible by mesh axis sequence of size 8"),
    ):
        constrain(jax.numpy.zeros((8, 12, 2)), ("batch", "length", "channels"))
