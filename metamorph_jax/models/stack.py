"""Equal blocks, one after another: the only place with `nn.scan` and `nn.remat`.

A scanned stack compiles one block, whatever its depth, and its parameters have a leading `layers`
dimension. The carry also holds the decoding cache, which is then updated in place.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

_POLICIES = {
    "full": None,  # keeps only what enters a block
    # Keeps the results of projections, but not the scores of attention, which are quadratic.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stack_blocks(
    block: type[nn.Module],
    *,
    num_layers: int,
    num_shared: int,
    remat: str,
    unroll: int,
    name: str | None = None,
    **fields,
) -> nn.Module:
    """Returns a module `(carry, layer_numbers(num_layers), *shared) -> (carry, None)`.

    Args:
        block: module class; called as `(carry, layer, *shared) -> (carry, None)`, where `layer` is
            the number of the block.
        num_layers: how many; at least 1.
        num_shared: number of arguments that every block receives alike.
        remat: `none`, `full` or `dots`, see `_POLICIES`.
        unroll: blocks per iteration of the scan; num_layers leaves no loop.
        name: of the module among its siblings; None inside `setup`.
        **fields: of `block`.
    """
    if remat != "none":
        # Within a scan the compiler cannot merge the recomputation away, so CSE needs no barrier.
        block = nn.remat(block, policy=_POLICIES[remat], prevent_cse=unroll >= num_layers)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0,) + (nn.broadcast,) * num_shared,
        length=num_layers,
        unroll=min(unroll, num_layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(**fields, name=name)


def layer_numbers(num_layers: int) -> jax.Array:
    """Returns what a stack takes as its second argument."""
    return jnp.arange(num_layers)
