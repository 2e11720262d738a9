"""Cross-entropy over answer tokens, each device with its own tokens and part of the vocabulary.

How tokens and vocabulary are taken in blocks is in `ops/cross_entropy.py`.
"""

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.objectives.reduce import RowSums, masked_row_sums
from metamorph_jax.ops.cross_entropy import TableLayout, chunked_cross_entropy
from metamorph_jax.sharding.rules import DEFAULT_RULES, spec_for
from metamorph_jax.typing import Array, Bool, Float, Int


def text_loss_per_token(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    vocab_size: int,
    chunk_size: int = 8192,
) -> Float[Array, "B T"]:
    """Returns -log p(target) where `mask`, else 0, in float32.

    On a mesh each device computes those of its rows. Of the table it gathers a block at a time, in
    the dtype of the hidden states, and where columns are split over `tensor` only its own.

    Args:
        hidden: after the final norm.
        head: output table, from `MetaMorph.head_table`.
        targets: already shifted, as in `Batch`.
        mask: `loss_mask` of the batch.
        vocab_size: real entries of the table; the rest is padding.
        chunk_size: most entries per block.
    """
    head = head.astype(hidden.dtype)
    layout = TableLayout(vocab_size, chunk_size)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _of_device(hidden, head, targets, mask, layout=layout)
    spec = spec_for(("embed", "vocab"), head.shape, mesh.shape)
    width_axes, vocab_axis = (*spec, None, None)[:2]  # what is not split may be left out
    layout = dataclasses.replace(layout, width_axes=width_axes, vocab_axis=vocab_axis)
    rows = spec_for(("batch", "length"), targets.shape, mesh.shape, DEFAULT_RULES.activations)
    run = jax.shard_map(
        functools.partial(_of_device, layout=layout),
        in_specs=(rows, spec, rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    return run(hidden, head, targets, mask)


def _of_device(hidden, head, targets, mask, *, layout):
    """Returns the losses of the rows of one device."""
    tokens = einops.rearrange(hidden, "B T D -> (B T) D")
    targets, mask = jnp.asarray(targets), jnp.asarray(mask, bool)
    losses = chunked_cross_entropy(tokens, head, targets.reshape(-1), mask.reshape(-1), layout)
    return losses.reshape(targets.shape)


def text_loss(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    vocab_size: int,
    chunk_size: int = 8192,
) -> RowSums:
    """Returns the summed loss and the number of answer tokens, per row.

    Args:
        hidden: after the final norm.
        head: output table, from `MetaMorph.head_table`.
        targets: already shifted, as in `Batch`.
        mask: `loss_mask` of the batch.
        vocab_size: real entries of the table; the rest is padding.
        chunk_size: most entries per block.
    """
    losses = text_loss_per_token(
        hidden, head, targets, mask, vocab_size=vocab_size, chunk_size=chunk_size
    )
    return masked_row_sums(losses, mask.astype(jnp.float32))
