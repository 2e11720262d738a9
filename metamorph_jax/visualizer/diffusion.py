"""The noise process in training: what a step draws and what the U-Net is to predict.

Through diffusers' schedulers. How pictures are sampled is in sampling.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
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
