import jax
import jax.numpy as jnp
import numpy as np

from metamorph_jax.objectives.text import text_loss, text_loss_per_token
from tests import tolerances

SIZES = {"vocab_size": 10, "chunk_size": 4}


def inputs():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 5, 6)), rng.normal(size=(6, 12))
    targets = rng.integers(0, 10, (2, 5))
    mask = np.array([[True, False, True, True, False], [False] * 5])
    return jnp.asarray(hidden, "float32"), jnp.asarray(head, "float32"), targets, mask


def test_sums_and_counts_per_row():
    hidden, head, targets, mask = inputs()
    losses = text_loss_per_token(hidden, head, targets, np.ones((2, 5), bool), **SIZES)
    sums = text_loss(hidden, head, targets, mask, **SIZES)
    expected = (np.asarray(losses) * mask).sum(axis=1)
    np.testing.assert_allclose(sums.sum, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    np.testing.assert_array_equal(sums.count, [3, 0])
    assert (np.asarray(losses) > 0).all()


def test_certain_prediction_costs_nothing():
    head = jnp.eye(12) * 100
    targets = np.array([[3, 7]])
    hidden = jax.nn.one_hot(targets, 12)
    sums = text_loss(hidden, head, targets, np.ones((1, 2), bool), **SIZES)
    assert sums.sum[0] == 0


def test_uniform_prediction_costs_the_logarithm_of_the_real_vocabulary():
    hidden, head, targets, mask = inputs()
    sums = text_loss(jnp.zeros_like(hidden), head, targets, mask, **SIZES)
    np.testing.assert_allclose(
        sums.sum[0], 3 * np.log(10), rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_unsupervised_positions_have_no_gradient():
    hidden, head, targets, mask = inputs()
    gradient = jax.grad(
        lambda h: jnp.sum(text_loss(h, head, targets, mask, **SIZES).sum), argnums=0
    )(hidden)
    assert not np.asarray(gradient)[~mask].any()
    assert (np.abs(np.asarray(gradient)[mask]).max(axis=-1) > 0).all()
