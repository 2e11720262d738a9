"""Cross-entropy over a large vocabulary without holding all logits.

At 128k entries the float32 logits of 16k tokens are 8 GB. Here a scan goes over blocks of the
vocabulary with a running maximum and sum, and the backward pass computes each block again.
Which tokens count and what is averaged is decided in `objectives/`.
"""

import functools

import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Float, Int

# Logit of entries that do not exist. Finite: exp(-inf - -inf) would be NaN in an empty block.
_ABSENT = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    vocab_size: int,
    chunk_size: int,
) -> Float[Array, "B T"]:
    """Returns -log softmax(hidden @ head)[targets] per token, in float32.

    Args:
        hidden: final hidden states; products are taken in their dtype and summed in float32.
        head: output table; columns from `vocab_size` on are padding and count as impossible.
        targets: ids below `vocab_size`.
        vocab_size: number of real entries.
        chunk_size: most entries per block.
    """
    return _forward(hidden, head, targets, vocab_size, chunk_size)[0]


def _blocks(head: Float[Array, "D V"], chunk_size: int) -> tuple[int, int]:
    """Returns (number of blocks, entries per block) so that all blocks are nearly full."""
    num_blocks = -(-head.shape[1] // chunk_size)
    return num_blocks, -(-head.shape[1] // num_blocks)


def _block_logits(hidden, head, block, size, vocab_size):
    """Returns the logits of one block, its first column, and which columns are its own.

    The last block is moved left to fit into the table instead of padding the table, which would
    copy it; the columns that it shares with the block before are marked as not its own.
    """
    start = jnp.minimum(block * size, head.shape[1] - size)
    columns = start + jnp.arange(size)
    own = (columns >= block * size) & (columns < vocab_size)
    part = jax.lax.dynamic_slice_in_dim(head, start, size, axis=1).astype(hidden.dtype)
    logits = jnp.einsum("BTD,DC->BTC", hidden, part, preferred_element_type=jnp.float32)
    return jnp.where(own[None, None, :], logits, _ABSENT), part, columns, own


def _forward(hidden, head, targets, vocab_size, chunk_size):
    num_blocks, size = _blocks(head, chunk_size)

    def add_block(carry, block):
        largest, total, chosen = carry
        logits, _, columns, own = _block_logits(hidden, head, block, size, vocab_size)
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=-1))
        exponentials = jnp.exp(logits - new_largest[:, :, None])
        total = total * jnp.exp(largest - new_largest) + jnp.sum(exponentials, axis=-1)
        hit = (columns[None, None, :] == targets[:, :, None]) & own[None, None, :]
        return (new_largest, total, chosen + jnp.sum(jnp.where(hit, logits, 0.0), -1)), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    start = (jnp.full_like(zeros, _ABSENT), zeros, zeros)
    (largest, total, chosen), _ = jax.lax.scan(add_block, start, jnp.arange(num_blocks))
    log_total = largest + jnp.log(total)
    return log_total - chosen, (hidden, head, targets, log_total)


def _backward(vocab_size, chunk_size, saved, cotangent):
    hidden, head, targets, log_total = saved
    num_blocks, size = _blocks(head, chunk_size)

    def add_block(carry, block):
        grad_hidden, grad_head = carry
        logits, part, columns, own = _block_logits(hidden, head, block, size, vocab_size)
        hit = (columns[None, None, :] == targets[:, :, None]) & own[None, None, :]
        probability = jnp.exp(logits - log_total[:, :, None])
        slope = ((probability - hit) * cotangent[:, :, None]).astype(hidden.dtype)
        grad_hidden += jnp.einsum("BTC,DC->BTD", slope, part, preferred_element_type=jnp.float32)
        grad_part = jnp.einsum("BTD,BTC->DC", hidden, slope, preferred_element_type=jnp.float32)
        # Columns shared with the block before were written there; here their slope is zero.
        before = jax.lax.dynamic_slice_in_dim(grad_head, columns[0], size, axis=1)
        grad_head = jax.lax.dynamic_update_slice_in_dim(
            grad_head, before + grad_part.astype(head.dtype), columns[0], axis=1
        )
        return (grad_hidden, grad_head), None

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(head))
    (grad_hidden, grad_head), _ = jax.lax.scan(add_block, start, jnp.arange(num_blocks))
    return grad_hidden.astype(hidden.dtype), grad_head, None


chunked_cross_entropy.defvjp(_forward, _backward)
