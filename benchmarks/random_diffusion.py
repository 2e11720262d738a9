"""Stable Diffusion and a MetaMorph encoder with random weights, tiny or of the real shapes.

For speed only: nothing of this was trained.
"""

import dataclasses
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel

from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.modeling_metamorph import MetaMorphForConditionalGeneration
from metamorph_jax.visualizer.encoder import FrozenEncoder
from metamorph_jax.visualizer.parts import Parts
from metamorph_jax.visualizer.schema import (
    DiffusionConfig,
    LatentsConfig,
    ProjectorConfig,
    TrainingConfig,
    VisualizerConfig,
    VisualizerRunConfig,
)

_DIFFUSION = DiffusionConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between a tiny and the real Stable Diffusion 1.5 with SigLIP SO400M."""

    picture_size: int
    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    norm_groups: int
    num_heads: int
    context_dim: int
    context_len: int
    hidden_dim: int
    num_tokens: int
    tower: dict


SD15 = Size(
    picture_size=512,
    vae_channels=(128, 256, 512, 512),
    unet_channels=(320, 640, 1280, 1280),
    norm_groups=32,
    num_heads=8,
    context_dim=768,
    context_len=77,
    hidden_dim=2048,
    num_tokens=64,
    tower={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
)
# An eighth of all widths and heads, all layers, heads as wide as they are, and a seventh of all
# positions (sides / 2.7, rounded to what can be halved): dense layers cost width^2 x positions,
# attention width x positions^2, so shares stay. `visualizer.py` counts them.
TINY = Size(
    picture_size=192,
    vae_channels=(16, 32, 64, 64),
    unet_channels=(40, 80, 160, 160),
    norm_groups=4,
    num_heads=1,
    context_dim=96,
    context_len=11,
    hidden_dim=256,
    num_tokens=9,
    tower={
        "hidden_size": 144,
        "intermediate_size": 538,
        "num_hidden_layers": 27,
        "num_attention_heads": 2,
        "image_size": 140,
        "patch_size": 14,
    },
)


def run_config(size: Size, batch_size: int, **training: object) -> VisualizerRunConfig:
    """Returns a recipe of this size."""
    model = VisualizerConfig(
        num_tokens=size.num_tokens,
        token_dim=size.tower["hidden_size"],
        context_dim=size.context_dim,
        context_len=size.context_len,
        projector=ProjectorConfig(hidden_dim=size.hidden_dim),
        latents=LatentsConfig(
            kind="vae",
            size=size.picture_size // 2 ** (len(size.vae_channels) - 1),
            channels=4,
            picture_size=size.picture_size,
        ),
        diffusion=_DIFFUSION,
    )
    settings = {
        "total_steps": 1_000_000,
        "batch_size": batch_size,
        "learning_rate": 1e-5,
        "warmup_steps": 0,
        "schedule": "linear_warmup_constant",
        "condition_drop": 0.7,
        "max_grad_norm": None,  # as configs/visualizer_sd15.py
    }
    return VisualizerRunConfig(
        name="benchmark",
        stable_diffusion="random weights",
        model=model,
        training=TrainingConfig(**settings | training),
    )


def create_parts(size: Size) -> Parts:
    """Returns a random autoencoder and the configuration of the U-Net."""
    levels = len(size.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=2,
        norm_num_groups=size.norm_groups,
        latent_channels=4,
        sample_size=size.picture_size,
    )
    levels = len(size.unet_channels)
    unet = {
        "sample_size": size.picture_size // 2 ** (len(size.vae_channels) - 1),
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": size.unet_channels,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "norm_num_groups": size.norm_groups,
        "cross_attention_dim": size.context_dim,
        "attention_head_dim": size.num_heads,
    }
    assert set(unet) <= set(UNet2DConditionModel.__init__.__annotations__)
    scheduler = dataclasses.asdict(_DIFFUSION) | {"steps_offset": 1, "clip_sample": False}
    return Parts(Path("random"), unet, scheduler, vae.requires_grad_(False).eval())


def create_encoder(folder: Path, size: Size, config: VisualizerRunConfig) -> FrozenEncoder:
    """Writes a random exported MetaMorph with the tower of this size; returns its encoder."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    export = MetaMorphConfig(
        text_config=small | {"num_attention_heads": 2, "num_key_value_heads": 1},
        vision_config=size.tower,
        num_image_tokens=size.num_tokens,
        image_token_id=13,
        image_start_token_id=14,
        image_end_token_id=15,
    )
    MetaMorphForConditionalGeneration(export).save_pretrained(folder)
    return FrozenEncoder(folder, config.model)
