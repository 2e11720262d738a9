"""The loss against the formula written out."""

import dataclasses

import numpy as np
import pytest
import torch

from metamorph_jax.visualizer.dataset import make_generator
from metamorph_jax.visualizer.diffusion import (
    create_noise_scheduler,
    diffusion_loss,
    draw_noise,
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
