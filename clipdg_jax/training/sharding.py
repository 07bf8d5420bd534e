"""Which device holds what: the mesh, the batch's rows and the parameters.

The mesh has two axes. `data` splits the batch only; `fsdp` splits the batch and, besides, the
large parameters with their optimiser state. Arrays are global `jax.Array`s and XLA inserts the
communication (axis type Auto), so that the step's code is that of one device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipdg_jax import errors
from clipdg_jax.training import stacking

AXES = ("data", "fsdp")

# Leaves with fewer elements stay whole: gathering them would cost more than they occupy.
FSDP_MIN_ELEMENTS = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices as a `data` x `fsdp` mesh.

    Args:
      data: devices along `data`; -1 takes all that `fsdp` leaves.
      fsdp: devices along `fsdp`.
      devices: those to use; all devices of all processes by default.

    Raises:
      UserError: the sizes do not use each device exactly once.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise errors.UserError(
            f"mesh.fsdp: {fsdp} does not divide the {count} devices; use {fitting}"
        )
    rest = count // fsdp
    if data not in (-1, rest):
        raise errors.UserError(
            f"mesh.data: {data} x mesh.fsdp {fsdp} is not the {count} devices; use {rest} or -1"
        )
    return jax.make_mesh((rest, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first dimension) over every device; other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shards each large parameter along its largest dimension that `fsdp` divides.

    Args:
      shapes: per parameter anything with `.shape`.
      mesh: from `make_mesh`.

    Returns:
      Per parameter its sharding; whole on every device where it is smaller than
      `FSDP_MIN_ELEMENTS`, where no dimension is divisible, or where `fsdp` is 1. A stack of blocks
      (`stacking`) lies as each of them would.
    """
    return {name: _param_sharding(name, leaf.shape, mesh) for name, leaf in shapes.items()}


def _param_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    own, size = stacking.block_shape(name, shape), mesh.shape["fsdp"]
    divisible = [d for d, length in enumerate(own) if length % size == 0]
    if size == 1 or not divisible or np.prod(own, dtype=np.int64) < FSDP_MIN_ELEMENTS:
        return replicated(mesh)
    dim = max(divisible, key=lambda d: own[d]) + len(shape) - len(own)
    return NamedSharding(mesh, PartitionSpec(*(None,) * dim, "fsdp"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same number of rows, at least one."""
    count = mesh.devices.size
    if batch_size < 1 or batch_size % count:
        raise errors.UserError(
            f"batch_size: {batch_size} is not divisible by {count} devices; "
            f"use a multiple of {count}"
        )


def put_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins every process's rows into one global batch on the devices.

    Fields of 64 bits (record indices) stay on the host: JAX would silently halve them, and no
    step needs them.

    Args:
      host_batch: this process's rows, [global rows / processes, ...] per field.
      mesh: from `make_mesh`.

    Returns:
      Global arrays [global rows, ...], rows sharded over the mesh. Does not wait for the copy.
    """
    rows = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(rows, values)
        for name, values in host_batch.items()
        if jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype
    }
