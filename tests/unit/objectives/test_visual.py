import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metamorph_jax.objectives.visual import (
    cosine_similarity,
    visual_loss,
    visual_loss_per_token,
)
from metamorph_jax.ops.normalize import l2_normalize
from tests import tolerances

KINDS = ["cosine", "l1", "softmax"]


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_cosine_equals_torch():
    a, b = random((4, 6)), random((4, 6), 1)
    theirs = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=-1)
    np.testing.assert_allclose(
        cosine_similarity(a, b), theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_perfect_prediction():
    target = np.asarray(l2_normalize(random((2, 3, 5))))
    cosine = visual_loss_per_token(target, target, "cosine")
    np.testing.assert_allclose(cosine, -1, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    assert not np.asarray(visual_loss_per_token(target, target, "l1")).any()
    p = np.asarray(jax.nn.softmax(target, axis=-1))
    entropy = -(p * np.log(p)).sum(axis=-1)
    np.testing.assert_allclose(
        visual_loss_per_token(p, p, "softmax"), entropy, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_l1_is_a_mean_over_channels():
    zero, one = np.zeros((1, 4), np.float32), np.array([[1, -1, 0, 2]], np.float32)
    assert visual_loss_per_token(zero, one, "l1")[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_meets_its_own_target(kind):
    features = np.abs(random((2, 2, 3, 5))) + 0.1
    prediction = np.abs(random((2, 7, 5), 1)) + 0.1
    index = np.full((2, 7), -1)
    index[0, 2], index[0, 5], index[1, 1] = 4, 0, 5
    result = visual_loss(prediction, features, index, kind)
    flat = features.reshape(2, 6, 5)
    expected = [
        visual_loss_per_token(prediction[0, [2, 5]], flat[0, [4, 0]], kind).sum(),
        visual_loss_per_token(prediction[1, 1], flat[1, 5], kind),
    ]
    np.testing.assert_allclose(
        result.loss.sum, expected, rtol=0, atol=5 * tolerances.FLOAT32_REORDERED
    )
    np.testing.assert_array_equal(result.loss.count, [2, 1])
    cosine = cosine_similarity(prediction[1, 1], flat[1, 5])
    np.testing.assert_allclose(
        result.cosine.sum[1], cosine, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_constants_and_the_rest_has_no_gradient(kind):
    features = jnp.asarray(np.abs(random((1, 1, 3, 5))))
    prediction = jnp.asarray(np.abs(random((1, 4, 5), 1)))
    index = jnp.array([[-1, 2, -1, -1]])

    def total(prediction, features):
        result = visual_loss(prediction, features, index, kind)
        return jnp.sum(result.loss.sum) + jnp.sum(result.cosine.sum)

    to_prediction, to_features = jax.grad(total, argnums=(0, 1))(prediction, features)
    assert not np.asarray(to_features).any()
    moved = np.abs(np.asarray(to_prediction)).max(axis=-1)[0] > 0
    np.testing.assert_array_equal(moved, [False, True, False, False])


@pytest.mark.parametrize("kind", KINDS)
def test_no_supervised_token_and_zero_predictions(kind):
    features, prediction = jnp.zeros((2, 1, 3, 5)), jnp.zeros((2, 4, 5))
    index = jnp.full((2, 4), -1)

    def total(prediction):
        return jnp.sum(visual_loss(prediction, features, index, kind).loss.sum)

    value, gradient = jax.value_and_grad(total)(prediction)
    assert value == 0
    assert not np.asarray(gradient).any()


def test_gradient_equals_torch():
    features, prediction = random((1, 1, 3, 5)), random((1, 3, 5), 1)
    index = jnp.array([[2, 0, 1]])

    def total(prediction):
        return jnp.sum(visual_loss(prediction, features, index, "cosine").loss.sum)

    theirs = torch.tensor(prediction[0], requires_grad=True)
    target = torch.tensor(features[0, 0][[2, 0, 1]])
    (-torch.nn.functional.cosine_similarity(theirs, target, dim=-1).sum()).backward()
    np.testing.assert_allclose(
        jax.grad(total)(jnp.asarray(prediction))[0],
        theirs.grad,
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )
