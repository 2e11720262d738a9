"""Condition -> latents or pictures, by diffusers' own StableDiffusionPipeline.

There is no text here: `prompt_embeds` are the visualizer's conditioning tokens, and what guidance
leads away from (`negative_prompt_embeds`) is zeros, as dropped conditions are in training. Files
are read and written in painter.py and picture_files.py.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import CLIPImageProcessor

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.typing import Float
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.schema import DiffusionConfig

SCHEDULERS = tuple(member.name for member in KarrasDiffusionSchedulers)  # fit Stable Diffusion
SAFETY_CHECKER, FEATURE_EXTRACTOR = "safety_checker", "feature_extractor"  # folders beside the vae


@dataclasses.dataclass(frozen=True)
class Safety:
    """Stable Diffusion's safety checker: what it objects to is painted black."""

    checker: StableDiffusionSafetyChecker
    extractor: CLIPImageProcessor


def load_safety(folder: Path) -> Safety | None:
    """Returns the safety checker of a Stable Diffusion folder, None if it has none.

    Raises:
        UserError: it is there, but cannot be loaded, so that not using it must be said.
    """
    if not (folder / SAFETY_CHECKER).is_dir():
        return None
    advice = "repair the folder, or paint with --no_safety_checker"
    for name in (SAFETY_CHECKER, FEATURE_EXTRACTOR):
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, but the checker needs it; {advice}")
    try:
        checker = StableDiffusionSafetyChecker.from_pretrained(
            folder / SAFETY_CHECKER, use_safetensors=True, local_files_only=True
        )
        extractor = CLIPImageProcessor.from_pretrained(
            folder / FEATURE_EXTRACTOR, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / SAFETY_CHECKER} could not be loaded (safetensors only, no pickles): "
            f"{error}; {advice}"
        ) from error
    return Safety(checker.eval(), extractor)


def pixel_sampler_config(config: DiffusionConfig) -> dict[str, Any]:
    """Returns how pixels are sampled on the training process: the configuration of a scheduler."""
    sampler = DDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction_type,
        # From the noisiest step, which is what the starting noise looks like; the default
        # ("leading") would begin at a step where the layout should already be there.
        timestep_spacing="trailing",
        clip_sample=True,  # pixels end at -1 and 1
    )
    return dict(sampler.config) | {"_class_name": type(sampler).__name__}


def create_sampler(visualizer: Visualizer, name: str | None = None) -> SchedulerMixin:
    """Returns the scheduler that paints.

    Args:
        visualizer: whose noise process it follows.
        name: a class of diffusers; None: the visualizer's own.

    Raises:
        UserError: diffusers has no such scheduler for Stable Diffusion, or it needs a package.
    """
    if visualizer.vae is None:
        config = pixel_sampler_config(visualizer.config.diffusion)
    else:  # diffusers' pipeline would set this, and complain
        config = {"clip_sample": False} | visualizer.scheduler_config
    name = name or config["_class_name"]
    if name not in SCHEDULERS:
        near = nearest(name, SCHEDULERS)
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"scheduler={name}: diffusers has no such scheduler for Stable Diffusion{guess}. "
            f"Known: {', '.join(SCHEDULERS)}"
        )
    try:
        return getattr(diffusers, name).from_config(config)
    except ImportError as error:
        raise UserError(f"scheduler={name}: {error}") from error


def create_pipeline(
    visualizer: Visualizer, scheduler: SchedulerMixin, safety: Safety | None = None
) -> StableDiffusionPipeline:
    """Returns diffusers' pipeline around a visualizer's U-Net and, if it has one, its VAE."""
    has_vae = visualizer.vae is not None
    pipeline = StableDiffusionPipeline(
        vae=visualizer.vae,
        text_encoder=None,
        tokenizer=None,
        unet=visualizer.unet,
        scheduler=scheduler if has_vae else None,
        safety_checker=safety.checker if safety else None,
        feature_extractor=safety.extractor if safety else None,
        requires_safety_checker=False,
    )
    if not has_vae:  # set afterwards: the constructor switches clip_sample off, which pixels need
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    context: Float[Tensor, "B context width"],
    *,
    guidance: float,
    num_steps: int,
    seeds: Sequence[int],
    side: int | None = None,
    output_type: str = "latent",
) -> Any:
    """Returns what the pipeline paints from one starting noise per seed.

    Args:
        pipeline: from `create_pipeline`.
        context: what the U-Net's cross-attention reads, from `Visualizer.condition`.
        guidance: 1 follows the condition; above 1 exaggerates its difference from no condition.
        num_steps: denoising steps.
        seeds: one per picture, so that a picture does not depend on the batch it was painted in.
        side: of the pictures in pixels; None: that of the U-Net.
        output_type: of diffusers: "latent", "np", "pil" or "pt".

    Returns:
        Diffusers' output: `.images` and, with a safety checker, `.nsfw_content_detected`.
    """
    return pipeline(
        prompt_embeds=context,
        negative_prompt_embeds=torch.zeros_like(context),
        guidance_scale=guidance,
        num_inference_steps=num_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        height=side,
        width=side,
        output_type=output_type,
    )
