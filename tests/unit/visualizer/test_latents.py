"""Pictures to latents and back."""

import numpy as np
import torch
from PIL import Image

from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.schema import LatentsConfig
from tests import tolerances

CODEC = create_latents(LatentsConfig(size=8, picture_size=32))


def smooth_scans(count: int) -> torch.Tensor:
    """Returns scans from 0.2 to 0.8, whose enlargements do not run into black or white."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand((count, 1, 8, 8), generator=generator)


def test_enlarges_like_pillow():
    levels = (smooth_scans(3) * 255).round()
    painted = CODEC.decode(levels / 127.5 - 1)
    for index in range(3):
        scan = Image.fromarray(levels[index, 0].numpy().astype(np.uint8))
        expected = np.asarray(scan.resize((32, 32), Image.Resampling.BICUBIC), np.int32)
        for channel in range(3):
            difference = np.abs(painted[index, :, :, channel].numpy().astype(np.int32) - expected)
            assert difference.max() <= tolerances.PIXEL_LEVELS


def test_encoding_undoes_the_enlargement():
    scans = smooth_scans(5) * 2 - 1
    back = CODEC.encode(CODEC.decode(scans))
    assert (back - scans).abs().max() <= tolerances.PIXEL_ROUNDING


def test_latents_out_of_range_are_clipped():
    assert CODEC.decode(torch.full((1, 1, 8, 8), 3.0)).unique().tolist() == [255]
    assert CODEC.decode(torch.full((1, 1, 8, 8), -3.0)).unique().tolist() == [0]


def test_colours_become_grey():
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    picture[..., 1] = 255
    assert torch.allclose(CODEC.encode(picture), torch.tensor(2 / 3 - 1))
