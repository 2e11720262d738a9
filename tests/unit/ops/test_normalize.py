import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.ops.normalize import l2_normalize, normalize_pixels
from tests import tolerances


def test_unit_length_and_direction():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    y = np.asarray(l2_normalize(x))
    np.testing.assert_allclose(
        np.linalg.norm(y, axis=-1), 1.0, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )
    assert (np.sum(x * y, axis=-1) > 0).all()


def test_zero_stays_zero_with_finite_gradient():
    zero = jnp.zeros((2, 4))
    assert not np.asarray(l2_normalize(zero)).any()
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x) ** 2))(zero)
    assert np.isfinite(gradient).all()


def test_floor_limits_the_gain():
    tiny = jnp.full((1, 1), 1e-15)
    np.testing.assert_allclose(l2_normalize(tiny), 1e-3, rtol=tolerances.FLOAT32_REORDERED)


def test_bfloat16_is_normalised_in_float32():
    x = jnp.full((1, 300), 1.0, jnp.bfloat16)  # a bfloat16 sum of 300 ones would stop at 256
    y = l2_normalize(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), 300**-0.5, rtol=tolerances.BFLOAT16_ROUNDING
    )


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_uint8_pixels_as_the_processor_does(family):
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = {
        "siglip": ([0.5] * 3, [0.5] * 3),
        "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    }[family]
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(
        normalize_pixels(images, family), expected, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_floating_pixels_pass():
    images = np.full((1, 2, 2, 3), 0.25, np.float32)
    np.testing.assert_array_equal(normalize_pixels(images, "clip"), images)
