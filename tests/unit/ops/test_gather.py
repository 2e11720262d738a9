import jax
import jax.numpy as jnp
import numpy as np

from metamorph_jax.ops.gather import gather_tokens, mix_tokens


def test_each_row_reads_its_own_tokens():
    tokens = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    out = gather_tokens(tokens, np.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(out, [[[4, 5], [0, 1]], [[8, 9], [8, 9]]])


def test_negative_indices_are_finite_and_carry_no_gradient_when_masked():
    tokens = jnp.ones((1, 3, 2))
    index = jnp.array([[-1, 2]])

    def total(tokens):
        chosen = gather_tokens(tokens, index)
        return jnp.sum(jnp.where((index >= 0)[:, :, None], chosen, 0.0))

    assert np.isfinite(gather_tokens(tokens, index)).all()
    np.testing.assert_array_equal(jax.grad(total)(tokens)[0], [[0, 0], [0, 0], [1, 1]])


def test_no_tokens_at_all():
    out = gather_tokens(jnp.zeros((2, 0, 4)), jnp.full((2, 3), -1))
    np.testing.assert_array_equal(out, np.zeros((2, 3, 4)))


def test_mixtures_are_weighted_sums_and_none_weighs_nothing():
    tokens = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    sources = np.array([[[0, 1, 2, 2], [-1] * 4], [[2] * 4, [0, 2, 0, 2]]])
    weights = np.array([[[0.5, 0.25, 0.125, 0.125], [0] * 4], [[1, 0, 0, 0], [0.25] * 4]])
    out = mix_tokens(tokens, sources, weights.astype(np.float32))
    np.testing.assert_array_equal(out, [[[1.5, 2.5], [0, 0]], [[10, 11], [8, 9]]])
    gradient = jax.grad(lambda tokens: mix_tokens(tokens, sources, weights).sum())(tokens)
    np.testing.assert_array_equal(gradient[0, :, 0], [0.5, 0.25, 0.25])
