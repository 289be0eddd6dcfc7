"""Device meshes, and which array lies where on them."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from regvq_jax.errors import UserError

PyTree = Any
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are kept whole on every device: gathering them costs more than it saves.
MIN_SHARDED_SIZE = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data` (batch only) and `fsdp` (batch and parameters).

    Args:
        data: devices along `data`; -1 takes what the other axis leaves.
        fsdp: devices along `fsdp`; -1 likewise; at most one of both may be -1.
        devices: all devices of all processes by default.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // max(rest, 1)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not fit {len(devices)} device(s); "
            "set one of them to -1 to take all that the other leaves."
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(tuple(shape), BATCH_AXES, axis_types=axis_types, devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh, *, field: str, slices: int = 1) -> None:
    """Raises UserError unless `batch_size` splits evenly over the mesh and the accumulation slices."""
    unit = mesh.size * slices
    if batch_size < 1 or batch_size % unit:
        nearest = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"{field}={batch_size} does not divide over {mesh.size} device(s)"
            + (f" x {slices} accumulation slices" if slices > 1 else "")
            + f"; the nearest that does is {nearest}."
        )


def check_codebook_size(codebook_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the codes split evenly along `fsdp`; they would lie whole on every device."""
    fsdp = mesh.shape["fsdp"]
    if codebook_size % fsdp:
        raise UserError(
            f"config.quantizer.codebook_size={codebook_size} does not divide over mesh.fsdp={fsdp}; the "
            f"nearest that does is {max(fsdp, round(codebook_size / fsdp) * fsdp)}, or set mesh.fsdp=1."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def param_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits each large array along its largest axis that `fsdp` divides; keeps the others whole.

    Args:
        tree: pytree of arrays or ShapeDtypeStructs (a whole train state will do).
        mesh: as from `make_mesh`.

    Returns:
        A pytree of NamedSharding of the same structure.
    """
    fsdp = mesh.shape["fsdp"]

    def choose(x) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(x.shape) if size % fsdp == 0]
        if fsdp == 1 or x.size < MIN_SHARDED_SIZE or not divisible:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(choose, tree)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, as global arrays split over all devices.

    Args:
        batch: arrays [B / processes, ...].
        mesh: as from `make_mesh`.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
