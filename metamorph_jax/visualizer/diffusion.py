"""The noise process: what a training step predicts, and how pictures are sampled.

Both go through diffusers' schedulers. Reading weights and writing PNG files is not done here.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler
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
