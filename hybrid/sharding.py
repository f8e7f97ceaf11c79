"""Logical axis names -> mesh axes: the one table that says how everything is split.

Parameters and activations carry names (`axes.py`); `RULES` maps a name to mesh axes. jit then
places the collectives: no model file mentions a mesh. The stacked axis of a scan is never
sharded, so a step of the scan touches one layer's shards only.

    data     rows of the batch; parameters are copies
    fsdp     rows of the batch; parameters are split along d_model and gathered a layer at a time
    tensor   heads, feed-forward width and vocabulary
    expert   experts; rows of the batch are copies
    context  time (`ops/attention/context.py`: what moves between devices); parameters are split as
             by fsdp, since devices of other tokens need no copies
"""

import dataclasses
import math
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid import axes
from hybrid.config import ConfigError, key

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert")

RULES: dict[str | None, tuple[str, ...]] = {
    axes.BATCH: ("data", "fsdp"),
    axes.TIME: ("context",),
    axes.EMBED: ("fsdp", "context"),
    axes.HEADS: ("tensor",),
    axes.KV_HEADS: ("tensor",),
    axes.FFN: ("tensor",),
    axes.VOCAB: ("tensor",),
    axes.EXPERTS: ("expert",),
    axes.BLOCKS: ("tensor",),
    axes.LAYER_EMBED: ("fsdp", "context"),
    axes.HEAD_DIM: (),
    axes.CONV: (),
    axes.LAYERS: (),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Keys under `mesh.`: devices along each axis; -1 on exactly one axis: what is left."""

    data: int = key(-1, "devices that split the batch and copy the parameters; -1: what is left")
    fsdp: int = key(1, "devices that split the batch and the parameters")
    tensor: int = key(1, "devices that split heads, feed-forward and vocabulary")
    context: int = key(1, "devices that split the tokens of a row, and the parameters")
    expert: int = key(1, "devices that split experts")

    def __post_init__(self):
        for name in MESH_AXES:
            size = getattr(self, name)
            if size < 1 and size != -1:
                raise ConfigError(name, "must be at least 1, or -1 on one axis", size)
        inferred = [name for name in MESH_AXES if getattr(self, name) == -1]
        if len(inferred) > 1:
            raise ConfigError(inferred[1], "only one axis can be inferred", -1, "-1 on one axis")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Devices along each of MESH_AXES.  Raises: ConfigError if they don't fit."""
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        for name, size in sizes.items():
            if size == -1:
                sizes[name] = max(1, num_devices // fixed)
        if math.prod(sizes.values()) != num_devices:
            named = ", ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
            problem = f"the axes must multiply to the device count ({num_devices})"
            raise ConfigError("mesh", problem, named or "1", "-1 on one axis takes what is left")
        return tuple(sizes.values())


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all).  Raises: ConfigError if the axes don't fit."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    # An axis may take a part of a torus' physical one: 8 × 8 on 4 × 4 × 4.
    arranged = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def spec_of(mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> P:
    """The partition of an array with logical `names`."""
    return P(*(split_axes(*axis, mesh) or None for axis in zip(names, shape, strict=True)))


def split_axes(name: str | None, size: int, mesh: Any = None) -> tuple[str, ...]:
    """The axes of a mesh (by default the active one) that split an axis called `name`.

    None where they don't divide it: it is copied.
    """
    mesh = active_mesh() if mesh is None else mesh
    shape = {} if mesh is None else mesh.shape
    split = tuple(axis for axis in RULES.get(name, ()) if shape.get(axis, 1) > 1)
    return split if size % math.prod(shape[axis] for axis in split) == 0 else ()


def shardings(mesh: Mesh, logical_axes, shapes):
    """NamedShardings for a tree of arrays: `logical_axes` has a tuple of names at each leaf."""

    def of_leaf(leaf, names):
        return NamedSharding(mesh, spec_of(mesh, names, leaf.shape))

    return jax.tree.map(of_leaf, shapes, logical_axes)


def placed(shapes, where):
    """A tree of shapes as ShapeDtypeStructs that lie where the tree of shardings `where` says."""

    def of_leaf(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(of_leaf, shapes, where)


def parts_of(name: str, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rules split an axis called `name`."""
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES[name])


def num_batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return parts_of(axes.BATCH, mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of [b, t] arrays: rows over data and fsdp, each whole: every part of a row reads all of its
    positions and segments."""
    return NamedSharding(mesh, P(RULES[axes.BATCH]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation to the rules, under `jax.set_mesh`; without a mesh it does nothing."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(mesh, names, x.shape))


def active_mesh() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`; None without one, or where it is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or math.prod(mesh.shape.values()) == 1 else mesh


def local_size(name: str | None, size: int) -> int:
    """The size of one device's part of an axis under the active mesh, else the whole."""
    shape = jax.sharding.get_abstract_mesh().shape
    return size // math.prod(shape[axis] for axis in split_axes(name, size))
