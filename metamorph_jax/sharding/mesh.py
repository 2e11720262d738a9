"""The device mesh: replicas, sharded replicas, split rows, split matrix products.

    data      devices see other rows
    fsdp      devices see other rows, and share parameters and optimiser state
    context   devices see other positions of the same rows, and share parameters, too
    tensor    devices share each matrix product

Which array lies along which axis is decided in `rules.py`.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.errors import UserError

AXIS_NAMES = ("data", "fsdp", "context", "tensor")


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int, int]:
    """Returns the sizes of `AXIS_NAMES` with a -1 filled in.

    Raises:
        UserError: The sizes do not multiply to `num_devices`.
    """
    sizes = tuple(getattr(config, name) for name in AXIS_NAMES)
    problems = config.problems()
    if problems:
        raise UserError(f"mesh: {problems[0]}")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % known == 0:
        return tuple(num_devices // known if size == -1 else size for size in sizes)
    if known != num_devices or -1 in sizes:
        raise UserError(
            f"mesh ({', '.join(AXIS_NAMES)})={sizes} does not fit {num_devices} device(s): "
            f"the given sizes multiply to {known}, which must "
            f"{'divide' if -1 in sizes else 'equal'} {num_devices}. "
            "Change mesh.data, mesh.fsdp, mesh.context or mesh.tensor, or set one of them to -1 "
            "(all the rest)."
        )
    return sizes


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all), `tensor` innermost.

    `tensor` varies fastest, so that the devices that talk most are neighbours; on a TPU pod, jax
    orders them along its torus. Axis types are Auto: the compiler completes what
    `rules.constrain` leaves open.

    Raises:
        UserError: The sizes do not multiply to the number of devices, or do not fit the torus.
    """
    auto = (AxisType.Auto,) * len(AXIS_NAMES)
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    try:
        return jax.make_mesh(shape, AXIS_NAMES, axis_types=auto, devices=devices)
    except NotImplementedError as error:
        extents = np.max([device.coords for device in devices], axis=0) + 1
        raise UserError(
            f"mesh ({', '.join(AXIS_NAMES)})={shape} does not lie along the axes of this pod, "
            f"{'x'.join(map(str, extents))} chips: each size must be a product of whole axes; "
            "change the mesh"
        ) from error


def num_batch_shards(mesh: Mesh) -> int:
    """Returns how many parts the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
