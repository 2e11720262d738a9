import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metamorph_jax.objectives.sigmoid import reconstruction_loss, sigmoid_loss
from metamorph_jax.ops.normalize import l2_normalize
from tests import tolerances


def embeddings(seed):
    x = np.random.default_rng(seed).normal(size=(4, 6)).astype(np.float32)
    return np.asarray(l2_normalize(x))


def loss(caption_ids, temperature=10.0, bias=-5.0):
    scalars = (jnp.float32(temperature), jnp.float32(bias))
    return sigmoid_loss(embeddings(0), embeddings(1), *scalars, np.asarray(caption_ids))


def test_equals_the_published_formula():
    images, texts = torch.tensor(embeddings(0)), torch.tensor(embeddings(1))
    logits = images @ texts.T * 10.0 - 5.0
    labels = 2 * torch.eye(4) - 1
    expected = -torch.nn.functional.logsigmoid(labels * logits).sum(dim=1)
    result = loss([0, 1, 2, 3])
    np.testing.assert_allclose(
        result.sum, expected, rtol=tolerances.FLOAT32_REORDERED, atol=tolerances.FLOAT32_REORDERED
    )
    np.testing.assert_array_equal(result.count, np.ones(4))


def test_equal_captions_are_positives():
    apart, same = np.asarray(loss([0, 1, 2, 3]).sum), np.asarray(loss([0, 1, 0, 3]).sum)
    np.testing.assert_array_equal(apart[[1, 3]], same[[1, 3]])
    logits = embeddings(0) @ embeddings(1).T * 10 - 5
    # -log sigmoid(x) becomes -log sigmoid(-x) for the pairs (0, 2) and (2, 0): a change of -x.
    np.testing.assert_allclose(
        same[[0, 2]] - apart[[0, 2]],
        [-logits[0, 2], -logits[2, 0]],
        rtol=0,
        atol=10 * tolerances.FLOAT32_REORDERED,
    )


def test_extreme_logits_stay_finite():
    assert np.isfinite(loss([0, 1, 2, 3], temperature=1e4).sum).all()


def test_perfect_reconstruction_costs_nothing():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    cells = images.reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 12)
    perfect = cells.astype(np.float32) / 127.5 - 1
    result = reconstruction_loss(perfect, images)
    np.testing.assert_allclose(result.sum, 0, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    off = reconstruction_loss(perfect + 0.5, images)
    np.testing.assert_allclose(off.sum, 0.25, rtol=tolerances.FLOAT32_REORDERED)
    np.testing.assert_array_equal(off.count, [1, 1])


def test_floating_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        reconstruction_loss(jnp.zeros((1, 4, 12)), jnp.zeros((1, 4, 4, 3)))
