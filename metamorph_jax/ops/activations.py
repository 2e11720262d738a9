"""What MLPs bend their inner values with, by name; GELU exists in three forms."""

import functools

import jax

from metamorph_jax.typing import Array, Float


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x * sigmoid(1.702 x). **Source:** OpenAI CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


# The tanh form differs from the exact one by 1e-3 in gradients, so names must not be mixed up.
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}
