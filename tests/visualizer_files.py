"""A visualizer of a few thousand parameters, and the files it is trained on."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.numpy import save_file

from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.modeling_metamorph import MetaMorphForConditionalGeneration
from metamorph_jax.visualizer.feed import PictureData
from metamorph_jax.visualizer.schema import (
    CheckpointConfig,
    DiffusionConfig,
    LatentsConfig,
    ProjectorConfig,
    TrainingConfig,
    UNetConfig,
    VisualizerConfig,
    VisualizerRunConfig,
)
from metamorph_jax.visualizer.sources import Sources, with_latents

NUM_TOKENS, TOKEN_DIM = 4, 6
MODEL = VisualizerConfig(
    num_tokens=NUM_TOKENS,
    token_dim=TOKEN_DIM,
    context_dim=8,
    context_len=5,
    projector=ProjectorConfig(hidden_dim=12, use_positions=True),
    unet=UNetConfig(
        channels=(8, 16),
        cross_attention=(False, True),
        layers_per_block=1,
        num_heads=2,
        norm_groups=4,
    ),
    latents=LatentsConfig(size=4, picture_size=8),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
)
RUN = VisualizerRunConfig(
    name="tiny",
    model=MODEL,
    training=TrainingConfig(
        total_steps=6, batch_size=4, learning_rate=1e-3, schedule="cosine", warmup_steps=1
    ),
    checkpoint=CheckpointConfig(interval_steps=2),
)

# Stable Diffusion in small: 4 channels at half the side, the real noise process.
SD_MODEL = dataclasses.replace(
    MODEL,
    unet=None,
    latents=LatentsConfig(kind="vae", size=8, channels=4, picture_size=16),
    diffusion=DiffusionConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
)

SD_RUN = dataclasses.replace(
    RUN, model=SD_MODEL, training=dataclasses.replace(RUN.training, condition_drop=0.5)
)

# The same recipe as a file, as a user would write it.
RECIPE = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {
            "num_tokens": 4, "token_dim": 6, "context_dim": 8, "context_len": 5,
            "projector": {"hidden_dim": 12, "use_positions": True},
            "unet": {
                "channels": [8, 16], "cross_attention": [False, True],
                "layers_per_block": 1, "num_heads": 2, "norm_groups": 4,
            },
            "latents": {"size": 4, "picture_size": 8},
            "diffusion": {"prediction_type": "v_prediction"},
        },
        "training": {
            "total_steps": 6, "batch_size": 4, "learning_rate": 1e-3,
            "schedule": "cosine", "warmup_steps": 1,
        },
        "checkpoint": {"interval_steps": 2},
    })
"""


def write_data(folder: Path, count: int = 10, size: tuple[int, int] = (8, 8)) -> Sources:
    """Writes random features and pictures of `size` (width, height); returns where they are."""
    random = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True)
    names = [f"{index}.png" for index in range(count)]
    for name in names:
        pixels = random.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(images / name)
    features = random.normal(size=(count, NUM_TOKENS, TOKEN_DIM)).astype(np.float32)
    file = folder / "features.safetensors"
    save_file({"features": features}, file, metadata={"images": json.dumps(names)})
    save_file({"visual_tokens": features[:3]}, folder / "visual_tokens.safetensors")
    return Sources(images, (file,))


def open_training_data(config: VisualizerRunConfig, sources: Sources) -> PictureData:
    """Returns the data of a recipe on pixels."""
    return with_latents(sources.open_data(config.model, None), config, None, None)


def write_stable_diffusion(folder: Path, context_dim: int = 8) -> Path:
    """Writes a random Stable Diffusion of a few thousand parameters; returns its folder."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=context_dim,
        attention_head_dim=2,
    ).save_pretrained(folder / "unet")
    PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def write_encoder(folder: Path, num_tokens: int = NUM_TOKENS, width: int = TOKEN_DIM) -> Path:
    """Writes a random exported MetaMorph that takes pictures of 12 pixels; returns its folder."""
    torch.manual_seed(0)
    config = MetaMorphConfig(
        text_config={
            "vocab_size": 16,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 12,
            "patch_size": 4,
        },
        num_image_tokens=num_tokens,
        image_token_id=13,
        image_start_token_id=14,
        image_end_token_id=15,
    )
    MetaMorphForConditionalGeneration(config).save_pretrained(folder)
    return folder
