"""Pictures <-> latents, what the diffusion works on.

Small scans are diffused at their native size: on the enlarged picture the many redundant pixels
drown the layout, and the U-Net learns texture only. Photographs go through Stable Diffusion's
autoencoder. Both codecs have the same two methods; views.py makes pictures square before.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import rearrange, repeat
from torch import Tensor

from metamorph_jax.typing import Float, Shaped
from metamorph_jax.visualizer.schema import LatentsConfig


class PixelLatents:
    """Grey pictures that are a bicubic enlargement of `size` x `size` pixels, from -1 to 1."""

    def __init__(self, config: LatentsConfig):
        self._config = config
        # The enlargement is linear, so it has an exact (least-squares) inverse, per axis.
        identity = torch.eye(config.size)[None, None]
        target = (config.picture_size, config.size)
        # With `antialias` torch has Pillow's bicubic coefficients.
        self._enlarge = F.interpolate(identity, target, mode="bicubic", antialias=True)[0, 0]
        self._shrink = torch.linalg.pinv(self._enlarge.double()).float()

    def encode(
        self, pictures: Shaped[Tensor, "B height width 3"]
    ) -> Float[Tensor, "B 1 rows columns"]:
        """Returns the latents of uint8 pictures: the scan that `decode` would enlarge to them."""
        grey = rearrange(pictures.float().mean(-1), "B height width -> B 1 height width")
        scaled = grey / 127.5 - 1.0
        return _apply(self._shrink, scaled)

    def decode(
        self, latents: Float[Tensor, "B 1 rows columns"]
    ) -> Shaped[Tensor, "B height width 3"]:
        """Returns uint8 RGB pictures."""
        scan = latents.clamp(-1.0, 1.0)
        large = _apply(self._enlarge, scan)
        levels = ((large + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return repeat(levels, "B 1 height width -> B height width rgb", rgb=3)


def _apply(
    resize: Float[Tensor, "new old"], pictures: Float[Tensor, "B channels old old"]
) -> Float[Tensor, "B channels new new"]:
    """Returns square pictures resized along both axes."""
    resize = resize.to(pictures.device)
    return resize @ pictures @ resize.T


class VaeLatents:
    """Latents of a frozen autoencoder, scaled to about unit variance.

    **Source:** Stable Diffusion (arXiv 2112.10752), with the mean of the autoencoder's narrow
    posterior instead of a sample, so that latents can be kept and are the same every time.
    """

    def __init__(self, vae: AutoencoderKL):
        self._vae = vae
        self._scale = vae.config.scaling_factor

    @torch.no_grad()
    def encode(
        self, pictures: Shaped[Tensor, "B height width 3"]
    ) -> Float[Tensor, "B channels rows columns"]:
        """Returns the latents of uint8 pictures, on the autoencoder's device."""
        pixels = rearrange(
            pictures.to(self._vae.device), "B height width rgb -> B rgb height width"
        )
        scaled = pixels.to(self._vae.dtype) / 127.5 - 1.0
        return (self._vae.encode(scaled).latent_dist.mode() * self._scale).contiguous()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "B channels rows columns"]
    ) -> Shaped[Tensor, "B height width 3"]:
        """Returns uint8 RGB pictures."""
        pixels = self._vae.decode(latents / self._scale).sample
        levels = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(levels, "B rgb height width -> B height width rgb")


def create_latents(
    config: LatentsConfig, vae: AutoencoderKL | None = None
) -> PixelLatents | VaeLatents:
    """Returns the codec that the recipe names; `vae` is the frozen one of `parts.load_parts`."""
    return PixelLatents(config) if config.kind == "pixels" else VaeLatents(vae)
