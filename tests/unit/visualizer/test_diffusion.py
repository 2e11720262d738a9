"""Loss and sampling against the formulas written out."""

import dataclasses

import numpy as np
import pytest
import torch

from metamorph_jax.visualizer.dataset import make_generator
from metamorph_jax.visualizer.diffusion import (
    create_noise_scheduler,
    diffusion_loss,
    draw_noise,
    sample,
)
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.schema import DiffusionConfig
from tests import tolerances
from tests.visualizer_files import MODEL

# Products of (1 - beta), betas in a line from 1e-4 to 0.02.
ALPHAS = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()
TOKENS = torch.randn((3, 4, 6), generator=make_generator(0))


def visualizer(prediction_type: str) -> Visualizer:
    torch.manual_seed(0)
    diffusion = DiffusionConfig(prediction_type=prediction_type)
    return Visualizer(dataclasses.replace(MODEL, diffusion=diffusion)).eval()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_mean_squared_error_of_the_formula(prediction_type):
    model = visualizer(prediction_type)
    clean = torch.randn((3, 1, 4, 4), generator=make_generator(1))
    noise = draw_noise(clean, model.config.diffusion, 0.5, make_generator(2))
    scheduler = create_noise_scheduler(model.config.diffusion)
    found = diffusion_loss(model, scheduler, clean, TOKENS, noise)

    signal = ALPHAS[noise.timesteps].sqrt()[:, None, None, None]
    rest = (1 - ALPHAS[noise.timesteps]).sqrt()[:, None, None, None]
    noisy = signal * clean + rest * noise.epsilon
    context = model.condition(TOKENS) * ~noise.is_dropped[:, None, None]
    predicted = model.unet(noisy, noise.timesteps, context).sample
    velocity = signal * noise.epsilon - rest * clean
    target = velocity if prediction_type == "v_prediction" else noise.epsilon
    expected = (predicted - target).square().mean()
    assert abs(found - expected).item() <= tolerances.DIFFUSION_LOSS


def test_drawn_noise_is_what_it_should_be():
    like = torch.zeros(4000, 1, 2, 2)
    config = DiffusionConfig(num_train_timesteps=50)
    noise = draw_noise(like, config, 0.25, make_generator(0))
    assert set(noise.timesteps.tolist()) == set(range(50))
    # Standard errors at 4000 draws: 0.007 of a fraction, 0.008 of a mean; 16000 normal draws.
    assert abs(noise.is_dropped.float().mean() - 0.25) < 0.035
    assert abs(noise.epsilon.mean()) < 0.04
    assert abs(noise.epsilon.std() - 1) < 0.03


def ddim(model, guidance, num_steps, seed):
    """Returns what deterministic DDIM paints, for velocity and one seed."""
    stride = 1000 // num_steps
    latents = torch.randn((1, 4, 4), generator=torch.Generator().manual_seed(seed))[None]
    context = model.condition(TOKENS[:1])
    for timestep in range(999, -1, -stride):
        before = ALPHAS[timestep - stride] if timestep >= stride else torch.tensor(1.0)
        now = ALPHAS[timestep]
        steps = torch.tensor([timestep])
        free = model.unet(latents, steps, torch.zeros_like(context)).sample
        bound = model.unet(latents, steps, context).sample
        velocity = free + guidance * (bound - free)
        clean = now.sqrt() * latents - (1 - now).sqrt() * velocity
        epsilon = now.sqrt() * velocity + (1 - now).sqrt() * latents
        clean = clean.clamp(-1, 1)
        latents = before.sqrt() * clean + (1 - before).sqrt() * epsilon
    return latents


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_is_ddim_from_the_noisiest_step(guidance):
    model = visualizer("v_prediction")
    found = sample(model, TOKENS[:1], guidance=guidance, num_steps=5, seeds=[7])
    with torch.inference_mode():
        expected = ddim(model, guidance, 5, 7)
    assert (found - expected).abs().max() <= tolerances.DIFFUSION_SAMPLE


def test_a_picture_depends_on_its_own_seed_only():
    model = visualizer("v_prediction")
    together = sample(model, TOKENS, guidance=1.0, num_steps=3, seeds=[3, 4, 5])
    alone = sample(model, TOKENS[1:2], guidance=1.0, num_steps=3, seeds=[4])
    assert (together[1:2] - alone).abs().max() <= tolerances.DIFFUSION_SAMPLE
    other = sample(model, TOKENS[1:2], guidance=1.0, num_steps=3, seeds=[5])
    assert (other - alone).abs().max() > 0.01
