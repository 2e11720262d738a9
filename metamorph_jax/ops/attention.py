"""Softmax attention with grouped key/value heads, written in plain array operations.

`attention` is the reference for every other backend: packed rows hold several examples, and a
kernel that ignores segments leaks one example into the next without any error. Rows too long for
what is here are in `attention_scan.py`, fused kernels in `attention_kernels.py`, and `backends.py`
chooses.
"""

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.ops.masks import causal_segment_mask
from metamorph_jax.typing import Array, Bool, Float, Int

# Finite, so that a row with nothing allowed has a softmax at all; far below any real score.
_MASKED_SCORE = -1e30
# Of queries: 8 blocks leave 9/16 of the square, more would save little (the limit is 1/2) and
# compile longer.
_MAX_BLOCKS, _MIN_BLOCK = 8, 128


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Returns softmax(query key^T / sqrt(H)) value, scores and softmax in float32.

    Args:
        query: N heads; consecutive G = N / K of them share one key/value head.
        key: K heads.
        value: K heads.
        mask: True where a query may look; None: everywhere. A query that may look nowhere
            (padding) gets zeros.
    """
    num_kv_heads, head_dim = key.shape[2], key.shape[3]
    grouped = einops.rearrange(query, "B T (K G) H -> B T K G H", K=num_kv_heads)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, key, preferred_element_type=jnp.float32)
    weights = _softmax(scores * head_dim**-0.5, mask)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(value.dtype), value)
    return einops.rearrange(mixed, "B T K G H -> B T (K G) H")


def causal_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Returns what `attention` returns under the causal mask of these segments.

    A block of queries meets the keys up to its own last position only, which leaves little more
    than half of the work. The backward pass computes the scores again instead of keeping them:
    that costs no time on a CPU, where memory is the bottleneck, and they are quadratic in T, as is
    the mask.

    Args:
        query: as for `attention`.
        key: as many positions as there are queries.
        value: likewise.
        segment_ids: as in `Batch`; 0 is padding.
    """
    length = query.shape[1]
    size = causal_block_size(length)
    if size == length:
        return attention(query, key, value, causal_segment_mask(segment_ids))
    attend = jax.checkpoint(_attend_up_to, static_argnums=(4,))
    blocks = [
        attend(query[:, first:end], key[:, :end], value[:, :end], segment_ids[:, :end], first)
        for first, end in ((first, min(first + size, length)) for first in range(0, length, size))
    ]
    return jnp.concatenate(blocks, axis=1)


def _attend_up_to(query, key, value, segment_ids, first):
    """Returns the attention of the queries from place `first` on, to all keys up to the last."""
    return attention(query, key, value, causal_segment_mask(segment_ids, first))


def causal_block_size(length: int) -> int:
    """Returns how many queries of a row of `length` positions `causal_attention` takes at once."""
    return min(length, max(_MIN_BLOCK, -(-length // _MAX_BLOCKS)))


def cached_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "R S H"],
    value: Float[Array, "R S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Returns what `attention` returns, of keys and values in the layout of a cache.

    R = B * K: rows and their key/value heads are one dimension, so that no product has to copy or
    transpose what it reads, even for a single row. That is most of the work when T is 1.

    Args:
        query: N heads; consecutive G = N / K of them share one key/value head.
        key: all heads of the first row, then those of the second, ...
        value: likewise.
        mask: True where a query may look.
    """
    batch, length, _, head_dim = query.shape
    num_kv_heads = key.shape[0] // batch
    sizes = {"K": num_kv_heads, "T": length}
    merged = einops.rearrange(query, "B T (K G) H -> (B K) (G T) H", K=num_kv_heads)
    scores = jnp.einsum("RMH,RSH->RMS", merged, key, preferred_element_type=jnp.float32)
    scores = einops.rearrange(scores, "(B K) (G T) S -> B K G T S", **sizes)
    weights = _softmax(scores * head_dim**-0.5, mask).astype(value.dtype)
    weights = einops.rearrange(weights, "B K G T S -> (B K) (G T) S")
    mixed = jnp.einsum("RMS,RSH->RMH", weights, value)
    return einops.rearrange(mixed, "(B K) (G T) H -> B T (K G) H", **sizes)


def _softmax(
    scores: Float[Array, "B K G T S"], mask: Bool[Array, "B T S"] | None
) -> Float[Array, "B K G T S"]:
    """Returns the weights of the values in float32."""
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    allowed = mask[:, None, None, :, :]
    weights = jax.nn.softmax(jnp.where(allowed, scores, _MASKED_SCORE), axis=-1)
    # Exact zeros: what is masked cannot change the result by even one bit.
    return jnp.where(allowed, weights, 0.0)
