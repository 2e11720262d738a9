import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.config.schema_model import RopeScaling
from metamorph_jax.ops.rope import apply_rope, inverse_frequencies, rope_tables
from tests import tolerances

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=8192)


def rotate(x, positions, **changes):
    settings = {"head_dim": x.shape[-1], "theta": 10000.0, "scaling": RopeScaling()} | changes
    return np.asarray(apply_rope(x, rope_tables(positions, **settings)))


def test_position_zero_changes_nothing():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, np.zeros((2, 3), np.int32)), x)


def test_first_half_is_paired_with_second_half():
    x = np.zeros((1, 1, 1, 4), np.float32)
    x[..., 0] = 1.0
    rotated = rotate(x, np.full((1, 1), 3, np.int32))[0, 0, 0]
    expected = [np.cos(3.0), 0.0, np.sin(3.0), 0.0]
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_scores_depend_on_distance_only():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def score(query_position, key_position):
        rotated = [
            rotate(x, np.full((1, 1), p, np.int32))
            for x, p in ((query, query_position), (key, key_position))
        ]
        return float(np.sum(rotated[0] * rotated[1]))

    # Angles of up to 20 radians carry 20 times the rounding of their sines.
    tolerance = 20 * tolerances.FLOAT32_REORDERED
    assert abs(score(5, 2) - score(20, 17)) < tolerance
    assert abs(score(5, 2) - score(5, 3)) > 10 * tolerance


def test_linear_scaling_divides_positions():
    x = np.random.default_rng(2).normal(size=(1, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 4, 12]], np.int32)
    scaled = rotate(x, positions, scaling=RopeScaling(kind="linear", factor=4.0))
    plain = rotate(x, positions // 4)
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_llama3_keeps_short_and_stretches_long_wavelengths():
    plain = inverse_frequencies(128, 500000.0, RopeScaling())
    scaled = inverse_frequencies(128, 500000.0, LLAMA3)
    wavelength = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    stretched = wavelength > 8192
    np.testing.assert_allclose(
        scaled[stretched], plain[stretched] / 8, rtol=tolerances.FLOAT32_REORDERED
    )
    between = ~stretched & (wavelength >= 2048)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keeps_dtype(dtype):
    x = jnp.ones((1, 2, 1, 4), dtype)
    tables = rope_tables(jnp.zeros((1, 2), jnp.int32), head_dim=4, theta=1e4, scaling=RopeScaling())
    assert apply_rope(x, tables).dtype == x.dtype
