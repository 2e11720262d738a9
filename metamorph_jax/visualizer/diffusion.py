"""The noise process: what a training step predicts, and how pictures are sampled.

Both go through diffusers' schedulers. Reading weights and writing PNG files is not done here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from metamorph_jax.typing import Bool, Float, Int
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.schema import DiffusionConfig


class Noise(NamedTuple):
    """Everything random in a training step, drawn outside so that a step can be repeated.

    Attributes:
        timesteps: one per picture, uniform.
        epsilon: standard normal.
        is_dropped: pictures trained without condition.
    """

    timesteps: Int[Tensor, "B"]
    epsilon: Float[Tensor, "B channels rows columns"]
    is_dropped: Bool[Tensor, "B"]


def draw_noise(
    like: Float[Tensor, "B channels rows columns"],
    config: DiffusionConfig,
    condition_drop: float,
    generator: torch.Generator,
) -> Noise:
    """Returns the randomness of one training step on latents shaped `like`."""
    count = like.shape[0]
    return Noise(
        torch.randint(config.num_train_timesteps, (count,), generator=generator),
        torch.randn(like.shape, generator=generator),
        torch.rand(count, generator=generator) < condition_drop,
    )


def create_noise_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """Returns the forward process for training."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction_type,
    )


def diffusion_loss(
    visualizer: Visualizer,
    scheduler: DDPMScheduler,
    latents: Float[Tensor, "B channels rows columns"],
    tokens: Float[Tensor, "B P E"],
    noise: Noise,
) -> Float[Tensor, ""]:
    """Returns the mean squared error of the predicted noise or velocity.

    **Source:** MetaMorph's visualizer training for epsilon (unweighted, uniform timesteps, the
    whole condition zeroed when dropped); velocity is Salimans & Ho, arXiv 2202.00512.
    """
    noisy = scheduler.add_noise(latents, noise.epsilon, noise.timesteps)
    context = visualizer.condition(tokens, noise.is_dropped)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise.epsilon, noise.timesteps)
    else:
        target = noise.epsilon
    return F.mse_loss(visualizer(noisy, noise.timesteps, context), target)


def sample(
    visualizer: Visualizer,
    tokens: Float[Tensor, "B P E"],
    *,
    guidance: float,
    num_steps: int,
    seeds: Sequence[int],
) -> Float[Tensor, "B channels rows columns"]:
    """Returns latents painted by DDIM from one starting noise per seed.

    Args:
        visualizer: in evaluation mode.
        tokens: visual tokens.
        guidance: 1 follows the condition; above 1 exaggerates its difference from no condition.
        num_steps: denoising steps.
        seeds: one per picture, so that a picture does not depend on the batch it was painted in.
    """
    config = visualizer.config
    scheduler = _create_sampler(config.diffusion)
    scheduler.set_timesteps(num_steps)
    shape = (config.latents.channels, config.latents.size, config.latents.size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    is_guided = guidance != 1.0
    with torch.inference_mode():
        context = visualizer.condition(tokens)
        if is_guided:
            context = torch.cat([torch.zeros_like(context), context])
        for timestep in scheduler.timesteps:
            rows = torch.cat([latents, latents]) if is_guided else latents
            predicted = visualizer(rows, timestep.expand(len(rows)), context)
            if is_guided:
                without, with_condition = predicted.chunk(2)
                predicted = without + guidance * (with_condition - without)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def _create_sampler(config: DiffusionConfig) -> DDIMScheduler:
    """Returns DDIM on the training process."""
    return DDIMScheduler(
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
