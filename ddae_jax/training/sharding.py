"""Layout of arrays over devices: a mesh of two axes, and the sharding of state and batches."""

import collections
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: list | None = None) -> Mesh:
    """Makes a mesh of ``data`` x ``fsdp`` devices.

    Args:
        data, fsdp: number of devices along each axis; -1, for one of them, takes what is left.
        devices: all of JAX's devices by default.

    Raises:
        ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    known = -data * fsdp  # size of the other axis, if one of them is -1
    if -1 in shape and known > 0 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if min(shape) < 1 or shape[0] * shape[1] != len(devices):
        raise ValueError(
            f"mesh.data={data}, mesh.fsdp={fsdp}; they must multiply to the number of devices, "
            f"{len(devices)} (-1, for one of them, takes what is left)"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
    """Returns the sharding of each array: split over ``fsdp`` along its longest divisible axis.

    An array without an axis that ``fsdp`` divides is held whole by every device.

    Args:
        mesh: mesh from :func:`make_mesh`.
        state: arrays, or their ``ShapeDtypeStruct`` s.

    Source: Rajbhandari et al. 2020, ZeRO (stage 3).
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh)), state)


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that one device holds of arrays, or of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def state_bytes(state: PyTree) -> dict[str, int]:
    """Returns the bytes that one device holds of a train state, or of its shapes, by kind."""
    return {
        "parameters": bytes_per_device(state.params),
        "optimizer": bytes_per_device(state.opt_state),
        "teacher": bytes_per_device(state.teacher),
    }


def layout_table(tree: PyTree) -> list[str]:
    """Returns the lines of a table of arrays: name, shape, axes that are split, MiB per device.

    Args:
        tree: arrays, or shapes with shardings. Arrays whose names differ only in the number of
            their block share a line.
    """
    rows = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = re.sub(r"_\d+/", "_*/", jax.tree_util.keystr(path, simple=True, separator="/"))
        axes = (*leaf.sharding.spec, *(None,) * (leaf.ndim - len(leaf.sharding.spec)))
        split = ", ".join(str(axis or "-") for axis in axes)
        rows[name, leaf.shape, f"({split})", bytes_per_device(leaf)] += 1
    cells = [("array", "shape", "split over", "MiB a device")]
    for (name, shape, split, size), count in rows.items():
        times = f"{count} x " if count > 1 else ""
        cells.append((name, f"{times}{shape}", split, f"{count * size / 2**20:.2f}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=False)), row[3].rjust(12)])
        for row in cells
    ]


def abstract(state: PyTree, sharding: PyTree) -> PyTree:
    """Returns shapes and dtypes of arrays, or of shapes, together with the given shardings."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, sharding
    )


def check_divisible(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises ``ValueError`` unless each micro-batch splits evenly over the devices."""
    unit = mesh.size * micro_batches
    if batch_size < 1 or batch_size % unit:
        nearest = max(1, round(batch_size / unit)) * unit
        in_parts = f", in {micro_batches} parts (optimizer.micro_batches)," * (micro_batches > 1)
        raise ValueError(
            f"batch_size={batch_size}{in_parts} is not divisible by the {mesh.size} devices "
            f"(mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}); nearest: {nearest}"
        )


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places this process's share of a batch on its devices, as part of global arrays.

    Args:
        batch: arrays of this process, the first axis the batch.
        mesh: mesh of all processes' devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), batch
    )


def local_replica(tree: PyTree) -> PyTree:
    """Copies arrays that are spread over a mesh, whole, to one device of this process.

    All processes must call it.
    """
    (mesh,) = {leaf.sharding.mesh for leaf in jax.tree.leaves(tree)}
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def _spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    num_parts = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % num_parts == 0]
    if num_parts == 1 or not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == longest else None for axis in range(len(shape))))
