import jax
import numpy as np
import pytest

from metamorph_jax.models.contrastive import cell_size
from metamorph_jax.models.init import abstract_params
from metamorph_jax.models.metamorph import MetaMorph
from tests import tolerances
from tests.model_helpers import quick_jit, random_params
from tests.tiny import tiny_model

CONFIG = tiny_model(contrastive_dim=6)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(5)[None, :] < np.array([[5], [2], [0]])
    return {
        "images": rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8),
        "tokens": rng.integers(1, 40, (3, 5)) * mask,
        "token_mask": mask,
        "caption_ids": np.arange(3),
    }


def contrast_eagerly(params, batch):
    return MetaMorph(CONFIG).apply({"params": params}, batch, method="contrast")


contrast = quick_jit(contrast_eagerly)


def test_output(params):
    out = contrast(params, batch())
    assert out.image_embedding.shape == out.text_embedding.shape == (3, 6)
    for embedding in (out.image_embedding, out.text_embedding):
        norms = np.linalg.norm(embedding, axis=-1)
        np.testing.assert_allclose(norms, 1.0, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    # 16 pixels in 2 x 2 visual tokens: cells of 8 x 8.
    assert cell_size(CONFIG) == 8
    assert out.reconstruction.shape == (3, 4, 8 * 8 * 3)
    assert out.features.shape == (3, 4, 8)


def test_text_is_a_bag_of_real_words(params):
    first = batch()
    expected = contrast(params, first).text_embedding
    second = batch()
    second["tokens"][0] = second["tokens"][0][::-1]
    second["tokens"][1, 2:] = 39  # masked
    np.testing.assert_allclose(
        contrast(params, second).text_embedding,
        expected,
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )
    third = batch()
    third["tokens"][1, 1] = (third["tokens"][1, 1] + 1) % 40
    changed = np.abs(contrast(params, third).text_embedding - expected).max(axis=-1)
    assert changed[1] > 100 * tolerances.FLOAT32_REORDERED
    assert changed[0] == changed[2] == 0


def test_gradients_are_finite_with_an_empty_caption(params):
    def total(params):
        out = contrast_eagerly(params, batch())
        return (out.image_embedding @ out.text_embedding.T).sum() + out.reconstruction.sum()

    grads = quick_jit(jax.grad(total))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    tower = jax.tree.leaves(grads["vision_tower"])
    assert all(np.abs(leaf).max() > 0 for leaf in tower if leaf.ndim > 2)


def test_head_exists_only_when_asked_for():
    assert "contrastive" in abstract_params(CONFIG)
    assert "contrastive" not in abstract_params(tiny_model())
