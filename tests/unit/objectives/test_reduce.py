import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.objectives.reduce import masked_row_sums, row_weights, weighted_mean
from tests import tolerances

SUMS = jnp.array([6.0, 2.0, 10.0, 0.0])
COUNTS = jnp.array([3.0, 1.0, 1.0, 0.0])


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=tolerances.FLOAT32_REORDERED)


def test_global_batch_weighs_every_token_alike():
    close(weighted_mean(SUMS, COUNTS), 18 / 5)


def test_micro_batch_averages_means():
    close(weighted_mean(SUMS, COUNTS, "micro_batch", 2), (8 / 4 + 10 / 1) / 2)
    # A part with nothing adds zero, as the mean of losses over devices does.
    close(weighted_mean(SUMS, COUNTS, "micro_batch", 4), (2 + 2 + 10 + 0) / 4)
    close(weighted_mean(SUMS, COUNTS, "micro_batch", 1), 18 / 5)


@pytest.mark.parametrize("mean_over", ["global_batch", "micro_batch"])
def test_nothing_counts(mean_over):
    zeros = jnp.zeros(4)
    assert weighted_mean(zeros, zeros, mean_over, 2) == 0
    gradient = jax.grad(lambda sums: weighted_mean(sums, zeros, mean_over, 2))(zeros)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("function", [weighted_mean, lambda s, c, m: row_weights(c, m)])
def test_unknown_mean(function):
    with pytest.raises(ValueError, match="'global_batch'"):
        function(SUMS, COUNTS, "global")


def test_row_weights_give_the_same_means():
    for mean_over, shards in (("global_batch", 1), ("micro_batch", 2), ("micro_batch", 4)):
        weights = row_weights(COUNTS, mean_over, shards)
        expected = weighted_mean(SUMS, COUNTS, mean_over, shards)
        close(jnp.vdot(weights, SUMS), expected)


def test_row_weights_of_accumulation_take_every_nth_row_of_a_shard():
    # One shard, two steps: step 0 has rows 0 and 2 (4 tokens), step 1 rows 1 and 3 (1 token).
    weights = row_weights(COUNTS, "micro_batch", num_shards=1, num_steps=2)
    expected = (16 / 4 + 2 / 1) / 2
    close(jnp.vdot(weights, SUMS), expected)


def test_masked_values_do_not_count_and_have_no_gradient():
    values = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    sums = masked_row_sums(values, mask)
    np.testing.assert_array_equal(sums.sum, [5, 0])
    np.testing.assert_array_equal(sums.count, [2, 0])
    gradient = jax.grad(lambda v: jnp.sum(masked_row_sums(v, mask).sum))(values)
    np.testing.assert_array_equal(gradient, mask)
