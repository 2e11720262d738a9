"""Visual tokens by index, as packed rows refer to them.

`data/` writes the indices, `models/` reads inputs with them and `objectives/` targets.
"""

import jax.numpy as jnp

from metamorph_jax.typing import Array, Float, Int


def gather_tokens(tokens: Float[Array, "B M E"], index: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """Returns row by row `tokens[index]`; where the index is negative (none), any finite value.

    With no tokens at all (a text-only run) the result is zero.
    """
    if tokens.shape[1] == 0:
        return jnp.zeros((*index.shape, tokens.shape[2]), tokens.dtype)
    return jnp.take_along_axis(tokens, jnp.maximum(index, 0)[:, :, None], axis=1)


def mix_tokens(
    tokens: Float[Array, "B M E"], sources: Int[Array, "B T 4"], weights: Float[Array, "B T 4"]
) -> Float[Array, "B T E"]:
    """Returns row by row the weighted sums of four tokens each, in float32; -1: none, of weight 0.

    One source after the other, so that never more than one [B, T, E] is gathered at once.
    """
    mixed = jnp.zeros((*sources.shape[:2], tokens.shape[2]), jnp.float32)
    for part in range(sources.shape[2]):
        mixed += gather_tokens(tokens, sources[..., part]) * weights[..., part, None]
    return mixed
