"""Square grids: bilinear reduction of vision tokens, and images cut into cells.

Bilinear means half-pixel centres and *no antialiasing*, which is torch's default when shrinking
and not that of `jax.image.resize`.
"""

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Float, Shaped


def reduce_tokens(
    tokens: Float[Array, "B M E"], reduction: str, num_tokens: int
) -> Float[Array, "B P EP"]:
    """Returns `num_tokens` tokens per image, row by row, in float32.

    Args:
        tokens: M of one image, row by row; a square number unless `reduction` is `none`.
        reduction: `none`; `interpolation` to the new grid; `concat_interpolation` to twice the
            side, then each 2x2 cell becomes one token of 4 E channels, in the order (0,0), (0,1),
            (1,0), (1,1).
        num_tokens: P.

    **Source:** MetaMorph `model/multimodal_encoder/siglip_encoder.py`; the released code resizes in
    float32, too.
    """
    tokens = tokens.astype(jnp.float32)
    if reduction == "none" or (reduction == "interpolation" and tokens.shape[1] == num_tokens):
        return tokens
    side = round(num_tokens**0.5)
    old_side = round(tokens.shape[1] ** 0.5)
    grid = einops.rearrange(tokens, "B (h w) E -> B h w E", h=old_side)
    if reduction == "interpolation":
        return einops.rearrange(resize_grid(grid, side), "B h w E -> B (h w) E")
    doubled = resize_grid(grid, 2 * side)
    return einops.rearrange(doubled, "B (h y) (w x) E -> B (h w) (y x E)", y=2, x=2)


def resize_grid(
    grid: Float[Array, "B old_side old_side E"], side: int
) -> Float[Array, "B side side E"]:
    """Returns the grid resampled to `side` x `side`, bilinear without antialiasing."""
    shape = (grid.shape[0], side, side, grid.shape[3])
    return jax.image.resize(grid, shape, method="bilinear", antialias=False)


def image_cells(images: Shaped[Array, "B size size 3"], side: int) -> Shaped[Array, "B P pixels"]:
    """Returns the side x side cells of each image, row by row, each flattened (y, x, channel).

    Pixels at the right and lower edge that do not fill a cell are left out.
    """
    cell = images.shape[1] // side
    cropped = images[:, : cell * side, : cell * side]
    return einops.rearrange(cropped, "B (h y) (w x) c -> B (h w) (y x c)", y=cell, x=cell)
