"""Normalisation of visual tokens and of pixels, and rounding.

Layer norms have parameters and live in `models/layers.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from metamorph_jax.config.presets import PIXEL_STATISTICS as PIXEL_STATISTICS
from metamorph_jax.typing import Array, Float, Shaped


def l2_normalize(x: Float[Array, "*batch E"], floor: float = 1e-12) -> Float[Array, "*batch E"]:
    """Returns `x` divided by its L2 norm over the last axis, or by `floor` if that is larger.

    The maximum is taken of the *squared* norm: the square root of zero has no finite gradient.

    **Source:** `torch.nn.functional.normalize`, which has the same floor.
    """
    squared = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(squared, floor * floor))
    return (x.astype(jnp.float32) / norm).astype(x.dtype)


def normalize_pixels(
    images: Shaped[Array, "*batch height width 3"], family: str
) -> Float[Array, "*batch height width 3"]:
    """Returns float32 pixels as the tower of `family` expects them.

    uint8 images become (x / 255 - mean) / std; floating images are taken as already normalised.
    """
    if not jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32)
    mean, std = (np.asarray(values, np.float32) for values in PIXEL_STATISTICS[family])
    channel_last = (1,) * (images.ndim - 1) + (3,)
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - mean.reshape(channel_last)) / std.reshape(channel_last)


def round_to(x: Float[Array, "*batch"], dtype: str) -> Float[Array, "*batch"]:
    """Returns float32 `x` with every value rounded to one that `dtype` can hold.

    Casting there and back does not do it: the compiler may leave out a pair of casts.
    """
    kind = jnp.finfo(dtype)
    return x if kind.nmant >= 23 else jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
