"""Meshes and placement: which device holds which part of an array. XLA does the rest.

Programs take the mesh from the arrays that they are given, so a run on many devices is the same call on placed arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxdl.errors import InputError
from jaxdl.types import Array, Dataset, PyTree, RunState

T = TypeVar("T")
Layout = tuple[Sharding, ...]  # of the leaves of a tree, in its order
MEMBER, DATA, MODEL = "member", "data", "model"
AXES = (MEMBER, DATA, MODEL)
LARGE = 2**24  # bytes of a leaf from which on its parts are spread over the devices: 4 million weights


def make_mesh(devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """A mesh of devices, all by default, with the axes `member`, `data` and `model` in this order.

    The rows of a batch are split over `data`, the members of an ensemble over `member`, large parameters over `data`
    and `model`. Without sizes all devices are on `data`. Raises InputError for another axis, a size below 1, and sizes
    that do not use up the devices.

    >>> dict(make_mesh(jax.devices()[:1]).shape), dict(make_mesh(jax.devices()[:1], data=1, model=1).shape)
    ({'data': 1}, {'data': 1, 'model': 1})
    """
    chosen = jax.devices() if devices is None else list(devices)
    sizes = sizes or {DATA: len(chosen)}
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise InputError(f"a mesh has the axes {', '.join(AXES)}, got {unknown[0]}. Use data=4, say.")
    product = math.prod(sizes.values())
    if min(sizes.values()) < 1 or product != len(chosen):
        text = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"the axes of a mesh must use up its {len(chosen)} devices, got {text}, which is {product}. "
            f"Use data={len(chosen)}, or give fewer devices."
        )
    names = tuple(name for name in AXES if name in sizes)
    shape = tuple(sizes[name] for name in names)
    # Explicit axes, which are JAX's default, would ask every operation of every model to name its sharding.
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=chosen)


def mesh_of(*trees: PyTree) -> Mesh | None:
    """The mesh on which one of the trees lies, by its first leaf; None where none was placed on one."""
    for tree in trees:
        leaves = jax.tree.leaves(tree)
        place = getattr(leaves[0], "sharding", None) if leaves and not isinstance(leaves[0], jax.core.Tracer) else None
        if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
            return place.mesh
    return None


def shard_dataset(rows: Dataset, mesh: Mesh) -> Dataset:
    """Rows on every device of a mesh: each device then takes its share of every batch by itself.

    Where several processes share the mesh, each gives all rows. Data that are too large for that are streamed.

    >>> rows = Dataset(np.ones((4, 1), np.float32), np.ones((4, 1), np.float32), np.ones(4, np.float32))
    >>> placed = shard_dataset(rows, make_mesh(jax.devices()[:1]))
    >>> placed.inputs.sharding.is_fully_replicated
    True
    """
    return device_put(rows, jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), rows))


def shard_state(run_state: RunState, mesh: Mesh, *, large: int = LARGE) -> RunState:
    """What a run remembers on a mesh, by one rule: `spec` of each leaf.

    `large`: the bytes from which on a leaf is split; 0 splits whatever can be split.

    >>> tree = {"kernel": jnp.ones((8, 4))}
    >>> shard_state(tree, make_mesh(jax.devices()[:1]), large=0)["kernel"].sharding.is_fully_replicated
    True
    """
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, partition_spec(leaf, mesh, large)), run_state)
    return device_put(run_state, shardings)


def partition_spec(leaf: Any, mesh: Any, large: int = LARGE) -> PartitionSpec:
    """How a weight, or a moment of it, is split over a mesh: not at all below `large` bytes.

    Else its longest dimension that `data` divides is split over `data`, and of the others the longest that `model`
    divides over `model`. XLA gathers what a layer needs when it needs it, as in Zhao et al., PyTorch FSDP (2023).
    """
    sides: list[str | None] = [None] * leaf.ndim
    if leaf.nbytes < max(1, large) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return PartitionSpec()
    for axis in (DATA, MODEL):
        size = mesh.shape.get(axis, 1)
        free = [side for side in range(leaf.ndim) if sides[side] is None]
        fitting = [side for side in free if size > 1 and leaf.shape[side] % size == 0]
        if fitting:
            sides[max(fitting, key=lambda side: leaf.shape[side])] = axis
    # As JAX writes it: another form of the same would be another program.
    while sides and sides[-1] is None:
        sides.pop()
    return PartitionSpec(*sides)


def device_put(tree: T, shardings: Any) -> T:
    """Arrays, from the host or from devices, placed leaf by leaf; typed keys too."""
    placed: T = jax.tree.map(_put, tree, shardings)
    return placed


def _put(leaf: Any, sharding: Sharding) -> Array:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            # One after the other: on CPUs, collectives of several processes that are under way at once can hang.
            return jax.block_until_ready(jax.device_put(leaf, sharding))
    if sharding.is_fully_addressable and (not isinstance(leaf, jax.Array) or leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    # By the host's memory: an array that lies on one process's devices cannot be put on those of others.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(tree: T) -> T:
    """Arrays that lie on a mesh, whole on this process's default device; every process of the mesh must call it."""
    mesh = mesh_of(tree)
    if mesh is None:
        return tree
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    everywhere = NamedSharding(mesh, PartitionSpec())
    return device_put(device_put(tree, jax.tree.map(lambda _: everywhere, tree)), jax.tree.map(lambda _: home, tree))


def shardings_of(tree: PyTree) -> Layout | None:
    """How the leaves of a tree lie on their mesh, to be kept by a program; None for a tree that lies on none."""
    leaves = jax.tree.leaves(tree)
    if not leaves or isinstance(leaves[0], jax.core.Tracer) or mesh_of(leaves[0]) is None:
        return None
    return tuple(leaf.sharding for leaf in leaves)


def constrain_like(tree: T, like: Layout | None) -> T:
    """The tree with its leaves where `layout` found them before; inside a program.

    Without it XLA would choose where a program's results lie, and the next call would be another program.
    """
    if like is None:
        return tree
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, map(lax.with_sharding_constraint, leaves, like))


def shard_by_size(tree: T) -> T:
    """The tree with its leaves split by `spec`, where this is called in a program on a mesh; else as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if not {DATA, MODEL} & set(mesh.axis_names):
        return tree
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, partition_spec(leaf, mesh)), tree)


def data_devices() -> int:
    """Over how many devices the rows of a batch are split where this is called: 1 outside of a program on a mesh."""
    size: int = jax.sharding.get_abstract_mesh().shape.get(DATA, 1)
    return size


def split_rows(tree: T) -> T:
    """Rows split over the devices of `data`; as they are where there is one, or where it does not divide them."""
    count = data_devices()
    if count == 1 or any(leaf.shape[0] % count for leaf in jax.tree.leaves(tree)):
        return tree
    return lax.with_sharding_constraint(tree, jax.tree.map(lambda _: PartitionSpec(DATA), tree))


def agree_on_steps(steps: int, mesh: Mesh | None) -> Any:
    """How many batches this process would do next, as an argument of a chunk, in which the least of all counts.

    One number where a process is alone, else an int32 array with one entry a device.
    """
    if mesh is None or jax.process_count() == 1:
        return np.int32(steps)
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    own = np.full(mesh.size, steps, np.int32)
    return jax.make_array_from_callback(own.shape, everywhere, lambda index: own[index])
