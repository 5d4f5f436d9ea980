"""Where every array lies on the machines: the mesh, and the only table from logical axes to mesh axes.

A mesh has three axes: `data` (copies of the model, each with its own rows), `fsdp` (rows too, and the parameters are
split over it and gathered when used), `tensor` (heads, feed-forward channels and vocabulary are split).
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dynamics.errors import UserError
from dynamics.tree import path_name

MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # the rows of a batch are split over both

# Parameters carry logical axes where they are defined; activations name theirs where they are constrained.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "norm": None,
    "batch": ROW_AXES,
    "length": None,
    "channels": None,  # d_model of an activation: whole everywhere, unlike `embed` of a parameter
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices lie along each axis; -1 on one axis takes all devices that the others leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: each size is a whole number >= 1, "
                "and at most one may be -1 (all devices that are left)"
            )

    def sizes(self, num_devices: int) -> tuple[int, int, int]:
        """The three sizes with -1 resolved; their product is at most the number of devices."""
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if -1 in sizes:
            others = -math.prod(sizes)
            sizes[sizes.index(-1)] = num_devices // others
            if num_devices % others:
                raise UserError(
                    f"{num_devices} devices cannot be split over a mesh of {self}: {num_devices} is not a multiple "
                    f"of {others}; change the other two sizes"
                )
        if math.prod(sizes) > num_devices:
            raise UserError(
                f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]} needs {math.prod(sizes)} devices and there "
                f"are {num_devices}; lower the sizes, or on CPU set XLA_FLAGS=--xla_force_host_platform_device_count=N"
            )
        return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first devices that it needs (all of jax.devices() are offered by default)."""
    offered = list(jax.devices() if devices is None else devices)
    sizes = shape.sizes(len(offered))
    # Auto by name: jax.make_mesh now gives Explicit axes, under which plain FSDP is refused (DuplicateSpecError).
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=offered[: math.prod(sizes)])


def num_row_shards(mesh: Mesh) -> int:
    """In how many parts the rows of a batch are split; also the number of groups of a DeviceBatch."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def active_row_shards() -> int:
    """In how many parts the active mesh splits the rows of a batch; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in ROW_AXES if axis in mesh.axis_names)


def activate(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Within it, `constrain` means this mesh; may be entered inside a traced function. None: constraints do nothing."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Ask the compiler to lay `x` out by its logical axes; x itself without an active mesh or on a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):  # or a mesh of members
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(RULES[axis] for axis in axes)))


def shardings_for(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a model, its gradients, its optimizer state, or any tree that holds them.

    A leaf is split by the logical axes of its parameter; dimensions in front of those (members of a population) and
    leaves without logical axes (counters) are whole on every device. Works on shapes (jax.eval_shape).
    Raises UserError naming the parameter, its dimension and the mesh axis when a dimension does not divide.
    """

    def place(path: tuple[Any, ...], node: Any) -> Any:
        axes = _logical_axes(node)
        return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, axes, mesh)), node)

    return jax.tree_util.tree_map_with_path(place, tree, is_leaf=lambda node: bool(_logical_axes(node)))


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Shardings of a DeviceBatch: [micro, rows or groups, ...], the second dimension split over data and fsdp."""
    shards = num_row_shards(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.shape[1] % shards:
            raise UserError(
                f"batch array {path_name(path)} has {leaf.shape[1]} rows a micro-batch, not divisible by the {shards} "
                f"row shards of mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}; change the rows or the mesh"
            )
        return NamedSharding(mesh, PartitionSpec(None, ROW_AXES))

    return jax.tree_util.tree_map_with_path(place, batch)


def _logical_axes(node: Any) -> tuple[str, ...]:
    """The logical axes a parameter was defined with; empty for everything else."""
    metadata = getattr(node, "get_metadata", None)
    return metadata().get("logical_axes", ()) if metadata is not None else ()


def _spec(name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of one array. Fewer dimensions than axes: a factored statistic, small and kept whole."""
    if not axes or len(shape) < len(axes):
        return PartitionSpec()
    leading = len(shape) - len(axes)
    for size, axis in zip(shape[leading:], axes, strict=True):
        mesh_axis = RULES[axis]
        if isinstance(mesh_axis, str) and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name} has {size} {axis}, not divisible by mesh axis {mesh_axis!r} of size "
                f"{mesh.shape[mesh_axis]}; use a mesh with {mesh_axis}={math.gcd(size, mesh.shape[mesh_axis])}"
            )
    return PartitionSpec(*(None,) * leading, *(RULES[axis] for axis in axes))
