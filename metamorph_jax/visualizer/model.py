"""The visualizer: projector + diffusers' conditional U-Net.

What a training step and a sampling loop do with it is in diffusion.py; weights on disk are in
checkpoint.py.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from metamorph_jax.typing import Bool, Float, Int
from metamorph_jax.visualizer.parts import Parts
from metamorph_jax.visualizer.projector import create_projector
from metamorph_jax.visualizer.schema import VisualizerConfig

_POSITION_STD = 0.02  # small beside the projector's normalised output, so tokens lead at first


class Visualizer(nn.Module):
    """Predicts the noise (or velocity) in latents from visual tokens.

    Attributes:
        config: what it was built from.
        projector: visual tokens -> conditioning tokens.
        positions: learned vector per conditioning token, or None.
        unet: diffusers' U-Net.
        encoder_fingerprint: of the encoder whose tokens it learned to paint, where known.
        parts: Stable Diffusion's frozen parts, None for pixels. They are no submodules: `to` and
            `state_dict` leave them alone.
    """

    def __init__(self, config: VisualizerConfig, parts: Parts | None = None):
        super().__init__()
        self.config = config
        self.parts = parts
        self.encoder_fingerprint: str | None = None
        self.projector = create_projector(config.token_dim, config.context_dim, config.projector)
        self.positions = None
        if config.projector.use_positions:
            shape = (config.num_projected, config.context_dim)
            self.positions = nn.Parameter(torch.randn(shape) * _POSITION_STD)
        self.unet = create_unet(config, parts)

    @property
    def vae(self) -> AutoencoderKL | None:
        """The frozen autoencoder, None for pixels."""
        return self.parts and self.parts.vae

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise process as diffusers' schedulers read it."""
        return (
            self.parts.scheduler_config if self.parts else dataclasses.asdict(self.config.diffusion)
        )

    def condition(
        self, tokens: Float[Tensor, "B P E"], is_dropped: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B context width"]:
        """Returns what the U-Net's cross-attention reads.

        Args:
            tokens: visual tokens as the encoder makes them (L2-normalised).
            is_dropped: pictures whose whole condition, positions included, becomes zeros.
        """
        context = self.projector(tokens)
        if self.positions is not None:
            context = context + self.positions
        if is_dropped is not None:
            context = context.masked_fill(is_dropped[:, None, None], 0.0)
        return F.pad(context, (0, 0, 0, self.config.context_len - context.shape[1]))

    def forward(
        self,
        noisy: Float[Tensor, "B channels rows columns"],
        timesteps: Int[Tensor, "B"],
        context: Float[Tensor, "B context width"],
    ) -> Float[Tensor, "B channels rows columns"]:
        """Returns the U-Net's prediction: noise or velocity, as `prediction_type` says."""
        return self.unet(noisy, timesteps, encoder_hidden_states=context).sample


def create_unet(config: VisualizerConfig, parts: Parts | None = None) -> UNet2DConditionModel:
    """Returns diffusers' U-Net with fresh weights.

    With sizes from the recipe, the decoder mirrors the encoder: where one looks at the conditioning
    tokens, so does the other.
    """
    unet, latents = config.unet, config.latents
    if unet is None:
        return UNet2DConditionModel.from_config(parts.unet_config)
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in unet.cross_attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in unet.cross_attention[::-1]]
    return UNet2DConditionModel(
        sample_size=latents.size,
        in_channels=latents.channels,
        out_channels=latents.channels,
        block_out_channels=unet.channels,
        layers_per_block=unet.layers_per_block,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        mid_block_type="UNetMidBlock2DCrossAttn",
        norm_num_groups=unet.norm_groups,
        cross_attention_dim=config.context_dim,
        attention_head_dim=unet.num_heads,  # diffusers' name for the number of heads here
    )
