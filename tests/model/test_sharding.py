"""The mesh, the one table, and what is refused."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dynamics.errors import UserError
from dynamics.model.llama import SIZES, LlamaConfig, abstract
from dynamics.model.sharding import MeshShape, activate, batch_shardings, constrain, make_mesh, shardings_for
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


def test_nearly_everything_of_a_published_model_is_split():
    placed = shardings_for(abstract(SIZES["7b"]), make_mesh(MeshShape(fsdp=4, tensor=2)))
    leaves = named_leaves(abstract(SIZES["7b"]))
    whole = sum(
        np.prod(leaves[name].shape)
        for name, s in named_leaves(placed).items()
        if not any(s.spec[-1:]) and "norm" in name
    )
    assert whole / sum(np.prod(leaf.shape) for leaf in leaves.values()) < 0.02


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
