"""The loss against the formulas written out."""

import dataclasses

import numpy as np
import pytest
import torch

from metamorph_jax.visualizer.diffusion import DiffusionLoss, draw_noise
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.order import make_generator
from metamorph_jax.visualizer.schema import DiffusionConfig
from tests import tolerances
from tests.visualizer_files import MODEL, RUN

# Products of (1 - beta), betas in a line from 1e-4 to 0.02.
ALPHAS = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()
TOKENS = torch.randn((3, 4, 6), generator=make_generator(0))


def visualizer(prediction_type: str) -> Visualizer:
    torch.manual_seed(0)
    diffusion = DiffusionConfig(prediction_type=prediction_type)
    return Visualizer(dataclasses.replace(MODEL, diffusion=diffusion)).eval()


def with_training(**changes):
    return dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, **changes))


@pytest.mark.parametrize("min_snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_formula(prediction_type, min_snr_gamma):
    model = visualizer(prediction_type)
    clean = torch.randn((3, 1, 4, 4), generator=make_generator(1))
    noise = draw_noise(with_training(condition_drop=0.5), 1, range(3))
    noise.timesteps[0] = 3  # nearly clean, where gamma limits
    assert 0 < noise.is_dropped.sum() < 3
    weights = torch.tensor([0.5, 0.0, 1.5])
    found = DiffusionLoss(model, min_snr_gamma)(clean, TOKENS, noise, weights)

    alphas = ALPHAS[noise.timesteps][:, None, None, None]
    signal, rest = alphas.sqrt(), (1 - alphas).sqrt()
    noisy = signal * clean + rest * noise.epsilon
    context = model.condition(TOKENS) * ~noise.is_dropped[:, None, None]
    predicted = model.unet(noisy, noise.timesteps, context).sample
    is_velocity = prediction_type == "v_prediction"
    target = signal * noise.epsilon - rest * clean if is_velocity else noise.epsilon
    errors = (predicted - target).square().mean(dim=(1, 2, 3))
    if min_snr_gamma is not None:
        ratio = (alphas / (1 - alphas)).flatten()
        limited = ratio.clamp(max=min_snr_gamma)
        errors = errors * limited / (ratio + 1 if is_velocity else ratio)
    assert abs(found - (errors * weights).sum()).item() <= tolerances.DIFFUSION_LOSS


def test_drawn_noise_is_what_it_should_be():
    diffusion = dataclasses.replace(MODEL.diffusion, num_train_timesteps=50)
    config = dataclasses.replace(
        with_training(condition_drop=0.25), model=dataclasses.replace(MODEL, diffusion=diffusion)
    )
    noise = draw_noise(config, 0, range(4000))
    assert set(noise.timesteps.tolist()) == set(range(50))
    # Standard errors at 4000 draws: 0.007 of a fraction; 0.004 at 64,000 normal draws.
    assert abs(noise.is_dropped.float().mean() - 0.25) < 0.035
    assert abs(noise.epsilon.mean()) < 0.02
    assert abs(noise.epsilon.std() - 1) < 0.015


def test_each_row_has_its_own_noise_whoever_draws_it():
    whole = draw_noise(RUN, 3, range(4))
    parts = [draw_noise(RUN, 3, range(start, start + 2)) for start in (0, 2)]
    for place, values in enumerate(whole):
        assert torch.equal(values, torch.cat([part[place] for part in parts]))
    assert not torch.equal(whole.epsilon, draw_noise(RUN, 4, range(4)).epsilon)
    assert not torch.equal(whole.epsilon[0], whole.epsilon[1])


def test_noise_offset_shifts_whole_channels():
    plain = draw_noise(RUN, 0, range(500)).epsilon
    shifts = draw_noise(with_training(noise_offset=0.5), 0, range(500)).epsilon - plain
    assert torch.allclose(shifts, shifts[..., :1, :1].expand_as(shifts), rtol=0, atol=1e-6)
    assert abs(shifts[:, 0, 0, 0].std() - 0.5) < 0.06  # standard error 0.016
