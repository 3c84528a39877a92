"""Meshes and shardings: which device holds which part of an array.

Compiled functions take the mesh from the sharding of their arguments: the same call runs on one device or many.
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
Layout = tuple[Sharding, ...]  # the shardings of the leaves of a tree
MEMBER, DATA, MODEL = "member", "data", "model"
AXES = (MEMBER, DATA, MODEL)
LARGE = 2**24  # bytes, 4 million float32 numbers: leaves from this size on are sharded over the devices


def make_mesh(devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """Return a mesh of devices with the axes `member`, `data` and `model`, in this order.

    The examples of a batch are sharded over `data`, the members of an ensemble over `member`, large parameters over
    `data` and `model`.

    devices: all devices of all processes unless given.
    sizes: the number of devices along each axis; without sizes all devices are on `data`.

    Raises InputError for another axis, a size below 1, and sizes whose product is not the number of devices.

    >>> mesh = make_mesh(jax.devices()[:1], data=1, model=1)
    >>> dict(mesh.shape)
    {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = sizes or {DATA: len(devices)}
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise InputError(f"a mesh has the axes {', '.join(AXES)}, got {unknown[0]}. Use data=4.")
    product = math.prod(sizes.values())
    if min(sizes.values()) < 1 or product != len(devices):
        text = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"the axes of a mesh must use up its {len(devices)} devices, got {text}, which is {product}. "
            f"Use data={len(devices)}, or give fewer devices."
        )
    names = tuple(name for name in AXES if name in sizes)
    shape = tuple(sizes[name] for name in names)
    # With explicit axes, JAX's default, every operation of a model would have to name its sharding.
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def mesh_of(*trees: PyTree) -> Mesh | None:
    """Return the mesh of the first leaf of one of the trees; None where no tree is on a mesh."""
    for tree in trees:
        leaves = jax.tree.leaves(tree)
        concrete = leaves and not isinstance(leaves[0], jax.core.Tracer)
        sharding = getattr(leaves[0], "sharding", None) if concrete else None
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def shard_dataset(rows: Dataset, mesh: Mesh) -> Dataset:
    """Return a dataset with a copy on every device of a mesh; each device then takes its part of every batch.

    Where several processes share the mesh, each process passes the whole dataset. Stream a dataset that is too large
    for one device.

    >>> rows = Dataset(np.ones((4, 1), np.float32), np.ones((4, 1), np.float32), np.ones(4, np.float32))
    >>> train = shard_dataset(rows, make_mesh(jax.devices()[:1]))
    >>> train.inputs.sharding.is_fully_replicated
    True
    """
    return device_put(rows, jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), rows))


def shard_state(run_state: RunState, mesh: Mesh, *, large: int = LARGE) -> RunState:
    """Return the state of a run with its large leaves sharded over a mesh, and the others replicated.

    The longest dimension of a large leaf that `data` divides is sharded over `data`, and the longest other dimension
    that `model` divides over `model`. XLA gathers the parameters of a layer when the layer needs them, as in Zhao et
    al., PyTorch FSDP (2023).

    large: the size in bytes from which on a leaf is sharded; 0 shards every leaf that can be.

    >>> state = shard_state({"kernel": jnp.ones((8, 4))}, make_mesh(jax.devices()[:1]))
    >>> state["kernel"].sharding.is_fully_replicated
    True
    """
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, partition_spec(leaf, mesh, large)), run_state)
    return device_put(run_state, shardings)


def partition_spec(leaf: Any, mesh: Any, large: int = LARGE) -> PartitionSpec:
    """Return the partition of a leaf by the rule of `shard_state`."""
    axes: list[str | None] = [None] * leaf.ndim
    if leaf.nbytes < max(1, large) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return PartitionSpec()
    for axis in (DATA, MODEL):
        size = mesh.shape.get(axis, 1)
        free = [dim for dim in range(leaf.ndim) if axes[dim] is None and size > 1 and leaf.shape[dim] % size == 0]
        if free:
            axes[max(free, key=lambda dim: leaf.shape[dim])] = axis
    # The form that JAX writes: jax.jit would compile again for an equal spec in another form.
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def device_put(tree: T, shardings: Any) -> T:
    """Return a tree with its arrays, from the host or from devices, under the given shardings; PRNG keys too."""
    arrays: T = jax.tree.map(_put, tree, shardings)
    return arrays


def _put(leaf: Any, sharding: Sharding) -> Array:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            # One after the other: concurrent collectives of several CPU processes can deadlock.
            return jax.block_until_ready(jax.device_put(leaf, sharding))
    if sharding.is_fully_addressable and (not isinstance(leaf, jax.Array) or leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    # Through host memory: JAX cannot copy an array from the devices of one process to those of another.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(tree: T) -> T:
    """Return the arrays of a mesh whole, on this process's first device; every process of the mesh must call it."""
    mesh = mesh_of(tree)
    if mesh is None:
        return tree
    for sharding in (NamedSharding(mesh, PartitionSpec()), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])):
        tree = device_put(tree, jax.tree.map(lambda _, sharding=sharding: sharding, tree))
    return tree


def shardings_of(tree: PyTree) -> Layout | None:
    """Return the shardings of the leaves of a tree; None for a tree without a mesh."""
    leaves = jax.tree.leaves(tree)
    if not leaves or isinstance(leaves[0], jax.core.Tracer) or mesh_of(leaves[0]) is None:
        return None
    return tuple(leaf.sharding for leaf in leaves)


def constrain_like(tree: T, like: Layout | None) -> T:
    """Return a tree, in a compiled function, with the shardings that `shardings_of` returned for its arguments.

    XLA could choose other shardings for the results, and the next call would compile again.
    """
    if like is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(lax.with_sharding_constraint, leaves, like))


def shard_by_size(tree: T) -> T:
    """Return a tree, in a compiled function on a mesh, with its leaves sharded by `partition_spec`."""
    mesh = jax.sharding.get_abstract_mesh()
    if not {DATA, MODEL} & set(mesh.axis_names):
        return tree
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, partition_spec(leaf, mesh)), tree)


def data_devices() -> int:
    """Return the number of devices that share a batch: 1 outside of a compiled function on a mesh."""
    size: int = jax.sharding.get_abstract_mesh().shape.get(DATA, 1)
    return size


def split_rows(tree: T) -> T:
    """Return a batch sharded over the devices of `data`; unchanged where their number does not divide the batch."""
    count = data_devices()
    if count == 1 or any(leaf.shape[0] % count for leaf in jax.tree.leaves(tree)):
        return tree
    return lax.with_sharding_constraint(tree, jax.tree.map(lambda _: PartitionSpec(DATA), tree))


def agree_on_steps(steps: int, mesh: Mesh | None) -> Any:
    """Return the number of steps that this process asks for, as an argument of a multi-step call.

    The compiled function takes the minimum over the processes: an int32 array with an entry for each device, or one
    number in a single process.
    """
    if mesh is None or jax.process_count() == 1:
        return np.int32(steps)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    entries = np.full(mesh.size, steps, np.int32)
    return jax.make_array_from_callback(entries.shape, sharding, lambda index: entries[index])
