"""The noise process in training: what a step draws, and what the U-Net is to predict.

Through diffusers' schedulers. How pictures are sampled is in sampling.py.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from metamorph_jax.typing import Bool, Float, Int
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.order import row_generator
from metamorph_jax.visualizer.schema import DiffusionConfig, VisualizerRunConfig


class Noise(NamedTuple):
    """Everything random in a training step, drawn outside so that a step can be repeated.

    Attributes:
        timesteps: one per picture, uniform.
        epsilon: standard normal, and what `noise_offset` adds.
        is_dropped: pictures trained without condition.
    """

    timesteps: Int[Tensor, "B"]
    epsilon: Float[Tensor, "B channels rows columns"]
    is_dropped: Bool[Tensor, "B"]


def draw_noise(config: VisualizerRunConfig, step: int, rows: Iterable[int]) -> Noise:
    """Returns the randomness of some rows of a step's batch, each from a generator of its own."""
    latents, training = config.model.latents, config.training
    shape = (latents.channels, latents.size, latents.size)
    drawn = []
    for row in rows:
        generator = row_generator(config.seed, step, row)
        limit = config.model.diffusion.num_train_timesteps
        timestep = torch.randint(limit, (), generator=generator)
        is_dropped = torch.rand((), generator=generator) < training.condition_drop
        epsilon = torch.randn(shape, generator=generator)
        if training.noise_offset:
            offset = torch.randn((latents.channels, 1, 1), generator=generator)
            epsilon += training.noise_offset * offset
        drawn.append(Noise(timestep, epsilon, is_dropped))
    return Noise(*(torch.stack(values) for values in zip(*drawn, strict=True)))


def create_noise_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """Returns the forward process for training."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction_type,
    )


class DiffusionLoss(nn.Module):
    """What is differentiated: the weighted errors of predicted noise or velocity, added up.

    A module of its own, because data-parallel wrappers look at what `forward` does.

    Args:
        visualizer: the model.
        min_snr_gamma: limit of the signal-to-noise ratio in a row's weight; None: weights of 1.
    """

    def __init__(self, visualizer: Visualizer, min_snr_gamma: float | None = None):
        super().__init__()
        self.visualizer = visualizer
        self._scheduler = create_noise_scheduler(visualizer.config.diffusion)
        self._min_snr_gamma = min_snr_gamma

    def forward(
        self,
        latents: Float[Tensor, "B channels rows columns"],
        tokens: Float[Tensor, "B P E"],
        noise: Noise,
        weights: Float[Tensor, "B"],
    ) -> Float[Tensor, ""]:
        """Returns the sum of the rows' mean squared errors, each times its weight.

        **Source:** MetaMorph's visualizer training for epsilon (unweighted, uniform timesteps, the
        whole condition zeroed when dropped); velocity is Salimans & Ho, arXiv 2202.00512; limited
        weights are Min-SNR, Hang et al., arXiv 2303.09556.
        """
        noisy = self._scheduler.add_noise(latents, noise.epsilon, noise.timesteps)
        context = self.visualizer.condition(tokens, noise.is_dropped)
        target = noise.epsilon
        if self._predicts_velocity:
            target = self._scheduler.get_velocity(latents, noise.epsilon, noise.timesteps)
        predicted = self.visualizer(noisy, noise.timesteps, context)
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        if self._min_snr_gamma is not None:
            weights = weights * self._limit_snr(noise.timesteps)
        return (errors * weights).sum()

    @property
    def _predicts_velocity(self) -> bool:
        return self._scheduler.config.prediction_type == "v_prediction"

    def _limit_snr(self, timesteps: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Returns min(SNR, gamma) over what the error of the target itself weighs."""
        ratio = compute_snr(self._scheduler, timesteps)
        limited = ratio.clamp(max=self._min_snr_gamma)
        return limited / (ratio + 1 if self._predicts_velocity else ratio)
