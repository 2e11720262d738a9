"""Equal blocks, one after another: the only place with `nn.scan` and `nn.remat`.

A scanned stack compiles one block, whatever its depth, and its parameters have a leading `layers`
dimension: this is how parameters are trained and stored. Decoding reads every weight for one token
at a time, and taking a layer out of a stack copies it, which costs more than the token; so it uses
a `BlockList` instead, with the parameters that `unstack_blocks` makes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from metamorph_jax.ops.attention_kernels import ATTENTION_NAME
from metamorph_jax.typing import PyTree

# What enters a block: the residual stream, as a block names it for the policy `offload`.
RESIDUAL_NAME = "residual"

_POLICIES = {
    "full": None,  # keeps only what enters a block
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME),
    # Keeps the results of projections, but not the scores of attention, which are quadratic.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[RESIDUAL_NAME],
        offload_src="device",
        offload_dst="pinned_host",
    ),
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
    """Returns a module `(carry, per_layer, *shared) -> (carry, outputs)`.

    Args:
        block: module class; called as `(carry, own, *shared) -> (carry, output)`, where `own` is
            the block's part of `per_layer` along its first dimension; None has a part None.
        num_layers: how many; at least 1.
        num_shared: number of arguments that every block receives alike.
        remat: `none`, or one of `_POLICIES`.
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


class BlockList(nn.Module):
    """The blocks of a stack written out, with parameters `layer_0`, `layer_1`, ...

    Attributes:
        block: module class, as for `stack_blocks`.
        num_layers: how many.
        fields: of `block`.
    """

    block: type[nn.Module]
    num_layers: int
    fields: Mapping[str, Any]

    @nn.compact
    def __call__(self, carry: PyTree, per_layer: Sequence | None, *shared) -> tuple[PyTree, tuple]:
        """Returns the last carry, and what each block gave besides.

        Args:
            carry: into the first block.
            per_layer: second argument of each block; None: None.
            *shared: further arguments of every block.
        """
        outputs = []
        for i in range(self.num_layers):
            block = self.block(**self.fields, name=f"layer_{i}")
            own = None if per_layer is None else per_layer[i]
            carry, output = block(carry, own, *shared)
            outputs.append(output)
        return carry, tuple(outputs)


def unstack_blocks(params: PyTree) -> PyTree:
    """Returns the parameters of a whole model for `MetaMorph(config, stacked=False)`.

    Args:
        params: as `init_params` makes them; only the decoder's blocks are changed.
    """
    language_model = params["language_model"]
    blocks = language_model["blocks"]
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    layers = {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(num_layers)
    }
    return params | {"language_model": language_model | {"blocks": layers}}
