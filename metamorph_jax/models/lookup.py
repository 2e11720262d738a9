"""Rows of an embedding table whose width is split over the devices of `fsdp` and `context`.

Each device looks up its slice of all rows and exchanges slices for whole rows, which moves no more
than the result; in the backward pass gradients go the same way, and each device adds up those of
its slice. Left to the compiler, the gradient of the whole table is summed over all devices in
float32, and with `context` the result is gathered everywhere.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from metamorph_jax.sharding.rules import DEFAULT_RULES, spec_for
from metamorph_jax.typing import Array, Float, Int

_TABLE, _IDS = P("tensor", ("fsdp", "context")), P(("data", "fsdp"), "context")


def look_up(
    table: Float[Array, "V D"], ids: Int[Array, "*batch"], axes: tuple[str, str], dtype: jnp.dtype
) -> Float[Array, "*batch D"]:
    """Returns the rows at `ids` in `dtype`; NaN for an id past the end, so that it is noticed.

    The cast comes after the lookup: the gradient is then summed in the table's dtype.

    Args:
        table: of vectors.
        ids: of rows.
        axes: logical names of the table's dimensions.
        dtype: of the result.
    """
    if not _is_split(table, ids, axes):
        return jnp.take(table, ids, axis=0, mode="fill").astype(dtype)
    size, tensor = table.shape[0], jax.sharding.get_abstract_mesh().shape["tensor"]

    def of_device(part, ids):
        ids = jax.lax.all_gather(ids, "context", axis=1, tiled=True)
        ids = jax.lax.all_gather(ids, "fsdp", axis=0, tiled=True)
        found = jnp.take(part, _own(ids, part.shape[0]), axis=0, mode="fill", fill_value=0)
        if tensor > 1:
            found = jax.lax.psum(found, "tensor")
        found = jnp.where((ids < size)[..., None], found, jnp.nan).astype(dtype)
        # Of `context` first: its slices lie next to each other within one of `fsdp`.
        found = jax.lax.all_to_all(found, "context", split_axis=1, concat_axis=2, tiled=True)
        return jax.lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    run = jax.shard_map(of_device, in_specs=(_TABLE, _IDS), out_specs=_IDS, check_vma=False)
    return run(table, ids)


def _own(ids: Int[Array, "B T"], num_rows: int) -> Int[Array, "B T"]:
    """Returns ids counted from the device's first row; those of other devices are past the end."""
    own = ids - jax.lax.axis_index("tensor") * num_rows
    return jnp.where(own >= 0, own, num_rows)


def _is_split(table: Array, ids: Array, axes: tuple[str, str]) -> bool:
    """Whether the width is split, and table and rows divide over all devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] * mesh.shape["context"] == 1 or ids.ndim != 2:
        return False
    sizes, rules = mesh.shape, DEFAULT_RULES
    rows = sizes["data"] * sizes["fsdp"]
    divides = ids.shape[0] % rows == 0 and ids.shape[1] % sizes["context"] == 0
    wanted = spec_for(axes, (0, 0), sizes, rules)  # nothing is too small for zero
    return divides and spec_for(axes, table.shape, sizes, rules) == wanted
