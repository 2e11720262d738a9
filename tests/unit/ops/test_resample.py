import numpy as np
import pytest
import torch

from metamorph_jax.ops.resample import image_cells, reduce_tokens, resize_grid
from tests import tolerances


def wave_grid():
    """A 27x27 grid that is symmetric in nothing."""
    y, x = np.mgrid[:27, :27]
    grid = np.sin(0.37 * y + 0.11) + np.cos(0.23 * x - 0.4) + 0.01 * x * y
    return grid[None, :, :, None].astype(np.float32)


def test_published_values_of_27_to_8():
    out = np.asarray(resize_grid(wave_grid(), 8))[0, :, :, 0]
    # Source: torch bilinear, align_corners=False, no antialiasing; printed with 6 digits.
    expected = {(0, 0): 1.518112, (0, 1): 1.361486, (0, 2): 0.754654}
    expected |= {(3, 4): -0.220310, (7, 7): 6.846165}
    for place, value in expected.items():
        np.testing.assert_allclose(out[place], value, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    np.testing.assert_allclose(out.mean(), 1.878078, rtol=0, atol=tolerances.FLOAT32_REORDERED)


@pytest.mark.parametrize(("old", "new"), [(27, 8), (27, 16), (9, 3), (9, 4), (5, 8), (4, 4)])
def test_equals_torch(old, new):
    grid = np.random.default_rng(old).normal(size=(2, old, old, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(np.moveaxis(grid, -1, 1)), size=(new, new), mode="bilinear"
    )
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    np.testing.assert_allclose(
        resize_grid(grid, new), theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_order_of_concatenated_cells():
    tokens = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    reduced = np.asarray(reduce_tokens(tokens, "concat_interpolation", 4))
    np.testing.assert_allclose(reduced[0, 0], [0, 1, 4, 5], rtol=tolerances.FLOAT32_REORDERED)
    np.testing.assert_allclose(reduced[0, 3], [10, 11, 14, 15], rtol=tolerances.FLOAT32_REORDERED)


def test_nothing_to_do_is_the_identity():
    tokens = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    np.testing.assert_array_equal(reduce_tokens(tokens, "interpolation", 9), tokens)
    np.testing.assert_array_equal(reduce_tokens(tokens, "none", 9), tokens)


def test_image_cells():
    image = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(1, 5, 5, 3)
    cells = np.asarray(image_cells(image, 2))
    assert cells.shape == (1, 4, 12)
    np.testing.assert_array_equal(cells[0, 0], image[0, :2, :2].ravel())
    np.testing.assert_array_equal(cells[0, 1], image[0, :2, 2:4].ravel())
    np.testing.assert_array_equal(cells[0, 3], image[0, 2:4, 2:4].ravel())
