"""Where every array lies on the machines: the mesh, and the only table from logical axes to mesh axes.

A mesh has five axes, from the slowest network to the fastest: `dcn` (copies of the model on slices that only the
data-centre network links; nothing but gradients crosses it), `data` (copies within a slice, each with its own rows),
`fsdp` (rows too, and the parameters are split over it and gathered when used), `sequence` (the positions of every row
are split; attention trades them for heads; parameters are split over it as over `fsdp`), `tensor` (heads, feed-forward
channels and vocabulary are split).
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dynamics.errors import UserError
from dynamics.tree import named_leaves, path_name

MESH_AXES = ("dcn", "data", "fsdp", "sequence", "tensor")
ROW_AXES = ("dcn", "data", "fsdp")  # the rows of a batch are split over all three
HEAD_AXES = ("tensor", "sequence")  # inside attention: rows of whole length, and the heads split over both

# Parameters carry logical axes where they are defined; activations name theirs where they are constrained.
RULES: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor", "sequence"),  # the head's work too: every device has all trained positions of its rows
    "table": ("fsdp",),  # d_model of the embedding and the head, whose vocabulary takes the other two
    "embed": ("fsdp", "sequence"),  # d_model of every other parameter
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "head_dim": (),
    "layers": (),
    "norm": (),
    "rank": (),  # of a low-rank adapter
    "batch": ROW_AXES,
    "length": ("sequence",),
    "whole_length": (),
    "channels": (),  # d_model of an activation: whole everywhere, unlike `embed` of a parameter
}
PARAMETER_AXES = ("fsdp", "sequence", "tensor")  # those that split parameters; the others hold copies


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices lie along each axis; -1 on one axis takes all devices that the others leave."""

    dcn: int = 1
    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh {self}: each size is a whole number >= 1, and at most one may be -1 (all devices that are left)"
            )

    def __str__(self) -> str:
        """'fsdp=4, tensor=2': the axes that split something."""
        return ", ".join(f"{axis}={getattr(self, axis)}" for axis in MESH_AXES if getattr(self, axis) != 1) or "data=1"

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The sizes in the order of MESH_AXES with -1 resolved; their product is at most the number of devices."""
        sizes = list(dataclasses.astuple(self))
        if -1 in sizes:
            others = -math.prod(sizes)
            sizes[sizes.index(-1)] = num_devices // others
            if num_devices % others:
                raise UserError(
                    f"{num_devices} devices cannot be split over a mesh of {self}: {num_devices} is not a multiple "
                    f"of {others}; change the other sizes"
                )
        if math.prod(sizes) > num_devices:
            raise UserError(
                f"mesh {self} needs {math.prod(sizes)} devices and there are {num_devices}; lower the sizes, or on "
                "CPU set XLA_FLAGS=--xla_force_host_platform_device_count=N"
            )
        return tuple(sizes)


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first devices that it needs (all of jax.devices() are offered by default).

    Devices of one index of `dcn` are whole slices or hosts; within them, neighbours on a TPU's torus are neighbours
    on the mesh. Works on the devices of a topology that is only described. Raises UserError when slices would be torn.
    """
    offered = list(jax.devices() if devices is None else devices)
    sizes = shape.sizes(len(offered))
    groups = _by_slice(offered[: math.prod(sizes)], sizes[0])
    # Split physical axes only where no assignment without splitting exists: a split axis has half the bandwidth.
    grids = [mesh_utils.create_device_mesh(sizes[1:], group, allow_split_physical_axes=True) for group in groups]
    # Auto by name: the default is Explicit axes, under which plain FSDP is refused (DuplicateSpecError).
    return Mesh(np.stack(grids), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(shape: MeshShape, num_devices: int) -> AbstractMesh:
    """A mesh without devices, for questions about shapes and bytes."""
    return AbstractMesh(shape.sizes(num_devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _by_slice(devices: list[Any], dcn: int) -> list[list[Any]]:
    """The devices in `dcn` groups of whole slices (TPU), or of whole processes (elsewhere).

    A single process without slices (a laptop, the tests) is cut into equal runs, which stand for slices.
    """
    slices = sorted({getattr(device, "slice_index", None) or 0 for device in devices})
    if devices[0].platform == "tpu" and len(slices) != dcn:
        raise UserError(
            f"the devices lie in {len(slices)} slice(s), which the data-centre network links, and the mesh has "
            f"dcn={dcn}; use dcn={len(slices)}"
        )
    by_host = sorted(devices, key=lambda d: (getattr(d, "slice_index", None) or 0, d.process_index))
    size = len(devices) // dcn
    groups = [by_host[start : start + size] for start in range(0, len(devices), size)]
    owners = [{device.process_index for device in group} for group in groups]
    if len(set().union(*owners)) > 1 and sum(map(len, owners)) > len(set().union(*owners)):
        raise UserError(
            f"dcn={dcn} would tear a process apart: {len(devices)} devices belong to {len(set().union(*owners))} "
            "processes; use a dcn that divides the number of processes"
        )
    return groups


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """In how many parts the rows of a batch are split; also the number of groups of a DeviceBatch."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def active_row_shards() -> int:
    """In how many parts the active mesh splits the rows of a batch; 1 without one."""
    mesh = active_mesh()
    return 1 if mesh is None else num_row_shards(mesh)


def activate(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Within it, `constrain` and attention mean this mesh; may be entered inside a traced function. None: no effect."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def active_mesh() -> AbstractMesh | None:
    """The mesh that `activate` set, when it has more than one device and is one of ours (not a mesh of members)."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and set(MESH_AXES) <= set(mesh.axis_names) else None


def length_is_split() -> bool:
    """Whether the active mesh splits the positions of a row."""
    mesh = active_mesh()
    return mesh is not None and any(mesh.shape[axis] > 1 for axis in RULES["length"])


def active_platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the active mesh's devices, also of devices that are only described; else JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Ask the compiler to lay `x` out by its logical axes; x itself without an active mesh or on a single device."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, _spec("an activation", x.shape, tuple(axes), mesh))


def shardings_for(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of shardings for a model, its gradients, its optimizer state, or any tree that holds them.

    A leaf is split by the logical axes of its parameter; dimensions in front of those (members of a population) and
    leaves without logical axes (counters) are whole on every device. Works on shapes (jax.eval_shape).
    Raises UserError naming the parameter, its dimension and the mesh axis when a dimension does not divide.
    """

    def place(path: tuple[Any, ...], node: Any) -> Any:
        axes, weight_shape = _logical_axes(node), getattr(node, "shape", ())

        def place_leaf(leaf: Any) -> NamedSharding:
            own = axes
            if axes and len(leaf.shape) == len(weight_shape) == len(axes):
                # The scale of an int8 weight is 1 number where the weight has many: nothing to split.
                sizes = zip(leaf.shape, weight_shape, axes, strict=True)
                own = tuple("rank" if size < of else axis for size, of, axis in sizes)
            return NamedSharding(mesh, _spec(f"parameter {path_name(path)}", leaf.shape, own, mesh))

        return jax.tree.map(place_leaf, node)

    return jax.tree_util.tree_map_with_path(place, tree, is_leaf=lambda node: bool(_logical_axes(node)))


MAX_WHOLE = 0.02  # share of bytes that may lie whole on every device: norms and counters, but no matrix


def device_bytes(tree: Any, mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """{name: bytes of this array on each device}; the same on all devices, since every split dimension divides.

    Works on shapes, and on a mesh without devices: a model of any size is asked about in no time and no memory.
    """
    placed = named_leaves(shardings_for(tree, mesh))
    return {
        name: math.prod(placed[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for name, leaf in named_leaves(tree).items()
    }


def check_sharding(tree: Any, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a tree (a model, a whole training state, or their shapes) that the mesh does not really split.

    Raises UserError when a dimension does not divide (naming the parameter), when more than MAX_WHOLE of the bytes lie
    whole on every device of a mesh that splits parameters (naming the largest), and when a mesh axis that is there to
    split parameters splits none of them.
    """
    splitting = [axis for axis in PARAMETER_AXES if mesh.shape[axis] > 1]
    specs = {name: sharding.spec for name, sharding in named_leaves(shardings_for(tree, mesh)).items()}
    if not splitting:
        return
    used = {name: {axis for entry in spec for axis in _entry_axes(entry)} for name, spec in specs.items()}
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in named_leaves(tree).items()}
    total = sum(sizes.values())
    whole = {name: size for name, size in sizes.items() if not used[name] & set(splitting)}
    if sum(whole.values()) > MAX_WHOLE * total:
        name = max(whole, key=lambda name: whole[name])
        raise UserError(
            f"{sum(whole.values()):,} of {total:,} bytes ({sum(whole.values()) / total:.1%}) would lie whole on every "
            f"device of mesh {_described(mesh)}, more than {MAX_WHOLE:.0%}; the largest of {len(whole)} such arrays is "
            f"parameter {name} with {whole[name]:,} bytes; use a mesh with {' and '.join(splitting)} of 1, or give the "
            "parameter logical axes where it is defined"
        )
    for axis in splitting:
        if not any(axis in axes for axes in used.values()):
            raise UserError(
                f"mesh axis {axis} of size {mesh.shape[axis]} splits no array of the {len(specs)} given; "
                f"use a mesh with {axis}=1, or give parameters the logical axes that it splits: "
                f"{', '.join(logical for logical, axes in RULES.items() if axis in axes)}"
            )


def _entry_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one dimension of a PartitionSpec, which writes none as None and one as a string."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Shardings of a DeviceBatch: [micro, rows or groups, ...], the second dimension split over the row axes."""
    shards = num_row_shards(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.shape[1] % shards:
            raise UserError(
                f"batch array {path_name(path)} has {leaf.shape[1]} rows a micro-batch, not divisible by the {shards} "
                f"row shards of mesh {_described(mesh)}; change the rows or the mesh"
            )
        return NamedSharding(mesh, PartitionSpec(None, ROW_AXES))

    return jax.tree_util.tree_map_with_path(place, batch)


def _logical_axes(node: Any) -> tuple[str, ...]:
    """The logical axes a parameter was defined with; empty for everything else."""
    metadata = getattr(node, "get_metadata", None)
    return metadata().get("logical_axes", ()) if metadata is not None else ()


def _described(mesh: Mesh | AbstractMesh) -> str:
    return str(MeshShape(**dict(mesh.shape)))


def _spec(name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition of one array. Fewer dimensions than axes: a factored statistic, small and kept whole."""
    if not axes or len(shape) < len(axes):
        return PartitionSpec()
    leading = len(shape) - len(axes)
    for size, axis in zip(shape[leading:], axes, strict=True):
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis])
        if size % parts:
            raise UserError(
                f"{name} has {size} {axis}, not divisible by mesh axis {' x '.join(RULES[axis])} of size {parts}; "
                f"use a mesh with {' x '.join(RULES[axis])} of {math.gcd(size, parts)}"
            )
    return PartitionSpec(*(None,) * leading, *(RULES[axis] or None for axis in axes))
