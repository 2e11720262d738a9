"""Cross-entropy over answer tokens.

How the vocabulary is chunked is in `ops/cross_entropy.py`.
"""

import jax.numpy as jnp

from metamorph_jax.objectives.reduce import RowSums, masked_row_sums
from metamorph_jax.ops.cross_entropy import chunked_cross_entropy
from metamorph_jax.typing import Array, Bool, Float, Int


def text_loss_per_token(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    vocab_size: int,
    chunk_size: int = 8192,
) -> Float[Array, "B T"]:
    """Returns -log p(target) at every position, in float32.

    Args:
        hidden: after the final norm.
        head: output table, from `MetaMorph.head_table`.
        targets: already shifted, as in `Batch`.
        vocab_size: real entries of the table; the rest is padding.
        chunk_size: most entries per block.
    """
    return chunked_cross_entropy(hidden, head, targets, vocab_size, chunk_size)


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
        hidden, head, targets, vocab_size=vocab_size, chunk_size=chunk_size
    )
    return masked_row_sums(losses, mask.astype(jnp.float32))
