"""Visual tokens -> pictures by the linear head that an own encoder was trained with.

No diffusion, no noise, and next to no time: each token gives its cell of the picture. Only runs
with a `contrastive` stage have such a head, and it is as sharp as the tokens are exact: what a
prediction leaves open comes out blurred. The visualizer proper is in `visualizer/`.
"""

import einops
import numpy as np

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, PyTree, Shaped


class PixelPainter:
    """Paints with the parameters of a run.

    Args:
        params: of the whole model.

    Raises:
        UserError: the model has no such head.
    """

    def __init__(self, params: PyTree):
        if "contrastive" not in params:
            raise UserError(
                "the run has no encoder of its own (model.contrastive_dim is not set), so it has "
                "no head that paints pixels"
            )
        head = params["contrastive"]["pixel_head"]
        self._kernel = np.asarray(head["kernel"], np.float32)
        self._bias = np.asarray(head["bias"], np.float32)

    def paint(
        self, tokens: Float[np.ndarray, "count P E"]
    ) -> Shaped[np.ndarray, "count height width 3"]:
        """Returns uint8 pictures."""
        pixels = tokens @ self._kernel + self._bias  # each token's cell, from -1 to 1
        side = round(tokens.shape[1] ** 0.5)
        cell = round((pixels.shape[-1] / 3) ** 0.5)
        pictures = einops.rearrange(
            pixels, "n (h w) (y x c) -> n (h y) (w x) c", h=side, w=side, y=cell, x=cell
        )
        return np.clip((pictures + 1) * 127.5, 0, 255).round().astype(np.uint8)
