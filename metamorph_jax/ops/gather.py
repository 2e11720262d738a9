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
