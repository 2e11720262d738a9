"""Cross-entropy over a large vocabulary: of supervised tokens only, never holding all logits.

At 128k entries the float32 logits of 16k tokens are 8 GB, and most tokens of a row are no answers.
Here the tokens that count are sorted to the front. A scan goes over blocks of the vocabulary with
a running maximum and sum, and for each a loop over as many blocks of tokens as there are; the
backward pass computes the logits again. What is averaged is decided in `objectives/`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Bool, Float, Int, PyTree

# Logit of entries that do not exist. Finite: exp(-inf - -inf) would be NaN in an empty block.
_ABSENT = -1e30
# Enough that a block of the table, read once for each, does not keep the matrix unit waiting.
TOKENS_PER_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """How a table of output vectors is cut: into blocks, and under `shard_map` over devices.

    Attributes:
        vocab_size: real entries; the columns behind them are padding and count as impossible.
        chunk_size: most entries per block.
        width_axes: mesh axes that the rows are split over; gathered block by block.
        vocab_axis: mesh axis that the columns are split over, in order.
    """

    vocab_size: int
    chunk_size: int
    width_axes: str | tuple[str, ...] | None = None
    vocab_axis: str | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(
    hidden: Float[Array, "M D"],
    head: Float[Array, "D_part V_part"],
    targets: Int[Array, "M"],
    mask: Bool[Array, "M"],
    layout: TableLayout,
) -> Float[Array, "M"]:
    """Returns -log softmax(hidden @ table)[targets] per token, in float32; 0 where not `mask`.

    Args:
        hidden: final hidden states of M tokens, the same for all devices of `layout.vocab_axis`;
            products are taken in their dtype and summed in float32.
        head: the table, or this device's part of it.
        targets: ids below the vocabulary's size.
        mask: the tokens that count; time goes with their number, in blocks of TOKENS_PER_BLOCK.
        layout: of the table.
    """
    return _forward(hidden, head, targets, mask, layout)[0]


class _Order(NamedTuple):
    """Tokens sorted so that those that count come first, in blocks.

    Attributes:
        tokens: of each place; the last block is filled up with any.
        counts: whether the token at a place counts.
        places: of each token.
        num_blocks: in all.
    """

    tokens: Int[Array, "places"]
    counts: Bool[Array, "places"]
    places: Int[Array, "M"]
    num_blocks: int


def _supervised_first(mask: Bool[Array, "M"]) -> _Order:
    num_blocks, size = _num_blocks(len(mask), TOKENS_PER_BLOCK)
    order = jnp.argsort(~mask)
    num_places = num_blocks * size
    tokens = jnp.pad(order, (0, num_places - len(mask)))
    counts = jnp.arange(num_places) < jnp.sum(mask, dtype=jnp.int32)
    return _Order(tokens, counts, jnp.argsort(order), num_blocks)


def _for_token_blocks(order: _Order, body: Callable, start: PyTree) -> PyTree:
    """Returns `start` after `state = body(first, size, state)` for every block that is needed.

    Args:
        order: of the tokens.
        body: gets the block's first place and its size.
        start: first state.
    """
    size = len(order.tokens) // order.num_blocks
    num_needed = -(-jnp.sum(order.counts, dtype=jnp.int32) // size)

    def is_needed(carry):
        # The constant is for planning, which reads from the compiled loop how long it can be.
        return (carry[0] < num_needed) & (carry[0] < order.num_blocks)

    def step(carry):
        block, state = carry
        return block + 1, body(block * size, size, state)

    return jax.lax.while_loop(is_needed, step, (jnp.zeros((), jnp.int32), start))[1]


class _Part(NamedTuple):
    """A block of the table: its vectors, their numbers, and which of them are not padding."""

    vectors: Float[Array, "D C"]
    start: Int[Array, ""]
    columns: Int[Array, "C"]
    own: Bool[Array, "C"]


def _num_blocks(total: int, most: int) -> tuple[int, int]:
    """Returns (number of blocks, size) so that all blocks are nearly full."""
    num_blocks = -(-total // most)
    return num_blocks, -(-total // num_blocks)


def _part(head, block, size, layout: TableLayout, dtype) -> _Part:
    """Returns a block of the table.

    The last block is moved left to fit into the table instead of padding the table, which would
    copy it; the columns that it shares with the block before are marked as not its own.
    """
    start = jnp.minimum(block * size, head.shape[1] - size)
    columns = start + jnp.arange(size)
    own = columns >= block * size
    if layout.vocab_axis is not None:
        columns += jax.lax.axis_index(layout.vocab_axis) * head.shape[1]
    vectors = jax.lax.dynamic_slice_in_dim(head, start, size, axis=1).astype(dtype)
    if layout.width_axes is not None:
        vectors = jax.lax.all_gather(vectors, layout.width_axes, axis=0, tiled=True)
    return _Part(vectors, start, columns, own & (columns < layout.vocab_size))


def _logits(hidden: Float[Array, "M D"], part: _Part) -> Float[Array, "M C"]:
    logits = jnp.einsum("MD,DC->MC", hidden, part.vectors, preferred_element_type=jnp.float32)
    return jnp.where(part.own, logits, _ABSENT)


def _is_target(part: _Part, targets: Int[Array, "M"]) -> Bool[Array, "M C"]:
    return (part.columns == targets[:, None]) & part.own


def _slices(first: Int[Array, ""], size: int, arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), arrays)


def _updates(arrays: PyTree, parts: PyTree, first: Int[Array, ""], axis: int = 0) -> PyTree:
    def update(array, part):
        return jax.lax.dynamic_update_slice_in_dim(array, part.astype(array.dtype), first, axis)

    return jax.tree.map(update, arrays, parts)


def _forward(hidden, head, targets, mask, layout):
    order = _supervised_first(mask)
    tokens = hidden[order.tokens], jnp.take(targets, order.tokens)
    num_parts, part_size = _num_blocks(head.shape[1], layout.chunk_size)

    def add_part(sums, block):
        part = _part(head, block, part_size, layout, hidden.dtype)

        def add_tokens(first, size, sums):
            (own_hidden, own_targets), own_sums = _slices(first, size, (tokens, sums))
            return _updates(sums, _add_logits(own_sums, own_hidden, own_targets, part), first)

        return _for_token_blocks(order, add_tokens, sums), None

    zeros = jnp.zeros(order.tokens.shape, jnp.float32)
    start = (jnp.full_like(zeros, _ABSENT), zeros, zeros)
    (largest, total, chosen), _ = jax.lax.scan(add_part, start, jnp.arange(num_parts))
    if layout.vocab_axis is not None:
        most = jax.lax.pmax(largest, layout.vocab_axis)
        total = jax.lax.psum(total * jnp.exp(largest - most), layout.vocab_axis)
        largest, chosen = most, jax.lax.psum(chosen, layout.vocab_axis)
    log_total = largest + jnp.log(jnp.where(order.counts, total, 1.0))
    losses = jnp.where(mask, (log_total - chosen)[order.places], 0.0)
    return losses, (hidden, head, targets, order, log_total)


def _add_logits(sums, hidden, targets, part: _Part):
    """Returns the largest logit, sum of exponentials and target's logit with a block's added."""
    largest, total, chosen = sums
    logits = _logits(hidden, part)
    new_largest = jnp.maximum(largest, jnp.max(logits, axis=-1))
    exponentials = jnp.exp(logits - new_largest[:, None])
    total = total * jnp.exp(largest - new_largest) + jnp.sum(exponentials, axis=-1)
    chosen += jnp.sum(jnp.where(_is_target(part, targets), logits, 0.0), axis=-1)
    return new_largest, total, chosen


def _backward(layout, saved, cotangent):
    hidden, head, targets, order, log_total = saved
    if layout.vocab_axis is not None:  # of each device's copy of a loss, which all are one loss
        cotangent = jax.lax.psum(cotangent, layout.vocab_axis)
    weights = jnp.where(order.counts, cotangent[order.tokens], 0.0)
    tokens = hidden[order.tokens], jnp.take(targets, order.tokens), log_total, weights
    num_parts, part_size = _num_blocks(head.shape[1], layout.chunk_size)

    def add_part(carry, block):
        grad_hidden, grad_head = carry
        part = _part(head, block, part_size, layout, hidden.dtype)

        def add_tokens(first, size, state):
            so_far, grad_part = state
            own, own_grad = _slices(first, size, (tokens, so_far))
            to_hidden, to_part = _gradients(*own, part)
            return _updates(so_far, own_grad + to_hidden, first), grad_part + to_part

        state = grad_hidden, jnp.zeros(part.vectors.shape, jnp.float32)
        grad_hidden, grad_part = _for_token_blocks(order, add_tokens, state)
        grad_part = grad_part.astype(head.dtype)
        if layout.width_axes is not None:
            grad_part = jax.lax.psum_scatter(grad_part, layout.width_axes, tiled=True)
        # Columns shared with the block before were written there; here their slope is zero.
        grad_part += jax.lax.dynamic_slice_in_dim(grad_head, part.start, part_size, axis=1)
        return (grad_hidden, _updates(grad_head, grad_part, part.start, axis=1)), None

    start = (jnp.zeros(tokens[0].shape, jnp.float32), jnp.zeros_like(head))
    (grad_hidden, grad_head), _ = jax.lax.scan(add_part, start, jnp.arange(num_parts))
    return grad_hidden[order.places].astype(hidden.dtype), grad_head, None, None


def _gradients(hidden, targets, log_total, weights, part: _Part):
    """Returns the gradients of a block of tokens and of a block of the table from each other."""
    difference = jnp.exp(_logits(hidden, part) - log_total[:, None]) - _is_target(part, targets)
    slope = (difference * weights[:, None]).astype(hidden.dtype)
    to_hidden = jnp.einsum("MC,DC->MD", slope, part.vectors, preferred_element_type=jnp.float32)
    return to_hidden, jnp.einsum("MD,MC->DC", hidden, slope, preferred_element_type=jnp.float32)


chunked_cross_entropy.defvjp(_forward, _backward)
