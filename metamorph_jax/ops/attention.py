"""Softmax attention with grouped key/value heads, written in plain array operations.

Every backend that is ever added must honour `mask` exactly: packed rows hold several examples, and
a kernel that ignores segments leaks one example into the next without any error.
"""

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Bool, Float

# Finite, so that a row with nothing allowed has a softmax at all; far below any real score.
_MASKED_SCORE = -1e30


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
    scores = scores * head_dim**-0.5
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        allowed = mask[:, None, None, :, :]
        weights = jax.nn.softmax(jnp.where(allowed, scores, _MASKED_SCORE), axis=-1)
        # Exact zeros: what is masked cannot change the result by even one bit.
        weights = jnp.where(allowed, weights, 0.0)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(value.dtype), value)
    return einops.rearrange(mixed, "B T K G H -> B T (K G) H")
