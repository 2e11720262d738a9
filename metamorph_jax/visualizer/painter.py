"""Visual tokens -> pictures in memory.

`Painter` is what other code calls; the denoising loop is diffusers' (sampling.py), and PNG files
are written by picture_files.py.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Bool, Float, Shaped
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.sampling import Safety, create_pipeline, create_sampler, sample
from metamorph_jax.visualizer.settings import DEFAULTS, PaintSettings

MAX_BATCH_SIZE = 64  # more small pictures at a time are no faster on a CPU
_MAX_BATCH_POSITIONS = 16384  # of the U-Net's input: four pictures of 64 x 64 latents
_PIXELS = ((1.0,), 20)  # guidance scales and steps: small pictures gain nothing from more
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_STABLE_DIFFUSION = ((6.0, 7.5, 10.0, 12.5), 50)  # MetaMorph, inference demo


class Painted(NamedTuple):
    """Pictures, and which of them the safety checker blackened."""

    pictures: Shaped[np.ndarray, "count height width 3"]
    is_flagged: Bool[np.ndarray, "count"]


class Painter:
    """A visualizer, ready to paint on a GPU if there is one.

    Args:
        visualizer: from `checkpoint.load_visualizer`; it is moved, not copied.
        settings: how to paint.
        safety: checks every picture; None: none is checked.

    Attributes:
        visualizer: the same.
        settings: the same, with the visualizer's choices filled in.

    Raises:
        UserError: a setting is out of range, or not for this visualizer.
    """

    def __init__(
        self,
        visualizer: Visualizer,
        settings: PaintSettings = DEFAULTS,
        safety: Safety | None = None,
    ):
        self.visualizer = visualizer.eval()
        scheduler = create_sampler(visualizer, settings.scheduler)
        self._pipeline = create_pipeline(visualizer, scheduler, safety)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        places = (device,) if settings.dtype == "float32" else (device, _HALVES[settings.dtype])
        for module in (self.visualizer, visualizer.vae, safety and safety.checker):
            if module is not None:  # not the pipeline's own `to`, which warns of halves as such
                torch.nn.Module.to(module, *places)
        self.settings = _complete(settings, visualizer, type(scheduler).__name__)
        self._check()

    @property
    def latent_side(self) -> int:
        """Side of the latents."""
        if self.visualizer.vae is None:
            return self.visualizer.config.latents.size
        return self.settings.size // self._pipeline.vae_scale_factor

    def paint(
        self, tokens: Float[Tensor, "count P E"], guidance: float, seeds: Sequence[int]
    ) -> Painted:
        """Returns uint8 RGB pictures, one per block of visual tokens.

        Args:
            tokens: visual tokens, L2-normalised as the encoder makes them.
            guidance: one scale.
            seeds: of the starting noise, one per picture, whatever else is painted with it.
        """
        size = max(1, min(MAX_BATCH_SIZE, _MAX_BATCH_POSITIONS // self.latent_side**2))
        batches = [
            self._paint_batch(tokens[start : start + size], guidance, seeds[start : start + size])
            for start in range(0, len(tokens), size)
        ]
        return Painted(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))

    def _paint_batch(
        self, tokens: Float[Tensor, "B P E"], guidance: float, seeds: Sequence[int]
    ) -> Painted:
        """Returns the pictures of one batch."""
        visualizer, pipeline = self.visualizer, self._pipeline
        side = self.latent_side * pipeline.vae_scale_factor
        with torch.inference_mode():
            context = visualizer.condition(tokens.to(pipeline.device, pipeline.dtype))
            is_latent = visualizer.vae is None
            output = sample(
                pipeline,
                context,
                guidance=guidance,
                num_steps=self.settings.num_steps,
                seeds=seeds,
                side=side,
                output_type="latent" if is_latent else "np",
            )
            if is_latent:
                codec = create_latents(visualizer.config.latents)
                pictures = codec.decode(output.images.float()).cpu().numpy()
            else:
                pictures = (output.images * 255).round().astype(np.uint8)
        flagged = output.nsfw_content_detected or [False] * len(tokens)
        return Painted(pictures, np.array(flagged, bool))

    def _check(self) -> None:
        """Raises a UserError if a setting is out of range."""
        settings, visualizer = self.settings, self.visualizer
        most = self._pipeline.scheduler.config.num_train_timesteps
        if not 1 <= settings.num_steps <= most:
            raise UserError(f"steps={settings.num_steps}: from 1 to {most} were expected")
        for guidance in settings.guidance:
            if not 1 <= guidance < float("inf"):
                raise UserError(f"guidance={guidance}: 1 (follow the tokens) or more was expected")
        if visualizer.vae is None:
            side = visualizer.config.latents.picture_size
            if settings.size != side:
                raise UserError(
                    f"size={settings.size}: this visualizer paints pixels, {side}x{side} of them"
                )
            return
        # The U-Net halves the latents at every level but the last.
        halvings = len(visualizer.unet.config.block_out_channels) - 1
        unit = math.lcm(8, self._pipeline.vae_scale_factor * 2**halvings)  # 8: diffusers' own
        if settings.size < unit or settings.size % unit:
            raise UserError(f"size={settings.size}: a multiple of {unit} pixels was expected")


def _complete(settings: PaintSettings, visualizer: Visualizer, scheduler: str) -> PaintSettings:
    """Returns settings without None."""
    is_pixels = visualizer.vae is None
    guidance, num_steps = _PIXELS if is_pixels else _STABLE_DIFFUSION
    return dataclasses.replace(
        settings,
        guidance=settings.guidance or guidance,
        num_steps=num_steps if settings.num_steps is None else settings.num_steps,
        scheduler=scheduler,
        size=visualizer.config.latents.picture_size if settings.size is None else settings.size,
    )
