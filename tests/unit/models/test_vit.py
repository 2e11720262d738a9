import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.models.vit import VisionTower
from tests.model_helpers import quick_jit

CONFIG = VisionConfig(
    image_size=14, patch_size=4, num_layers=3, num_heads=2, embed_dim=8, mlp_dim=12
)
F32 = jnp.dtype("float32")


def tower_shapes(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    size = config.image_size
    tower = VisionTower(config, F32, F32)
    init = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return jax.tree.map(lambda leaf: leaf.shape, nn.unbox(init["params"]))


@pytest.mark.parametrize(("layer", "blocks"), [(-1, 3), (3, 3), (-2, 2), (1, 1)])
def test_only_used_blocks_exist(layer, blocks):
    params = tower_shapes(feature_layer=layer)
    shapes = jax.tree.leaves(params["blocks"], is_leaf=lambda x: isinstance(x, tuple))
    assert {shape[0] for shape in shapes} == {blocks}


def test_layer_zero_is_the_embedding():
    assert "blocks" not in tower_shapes(feature_layer=0)
    assert "blocks" not in tower_shapes(feature_layer=-4)


def test_parameters_by_family():
    siglip, clip = tower_shapes(), tower_shapes(family="clip")
    assert set(siglip) == {"patch_embed", "position_embed", "blocks"}
    assert set(siglip["patch_embed"]) == {"kernel", "bias"}
    assert siglip["position_embed"]["embedding"] == (9, 8)
    assert set(clip) == {*siglip, "class_embed", "pre_norm"}
    assert set(clip["patch_embed"]) == {"kernel"}
    assert clip["position_embed"]["embedding"] == (10, 8)
    assert clip["class_embed"]["embedding"] == (8,)


@pytest.mark.parametrize(
    ("family", "policy", "tokens"),
    [
        ("siglip", "patch", 9),
        ("siglip", "cls_patch", 9),
        ("clip", "patch", 9),
        ("clip", "cls_patch", 10),
    ],
)
def test_number_of_tokens(family, policy, tokens):
    config = dataclasses.replace(CONFIG, family=family, cls_policy=policy)
    assert config.num_tokens == tokens
    tower = VisionTower(config, F32, F32)
    pixels = jnp.zeros((2, 14, 14, 3))
    out = jax.eval_shape(lambda: tower.init_with_output(jax.random.key(0), pixels)[0])
    assert out.shape == (2, tokens, 8)


def test_pixels_past_the_last_full_patch_are_unused():
    config = dataclasses.replace(CONFIG, num_layers=1)
    tower = VisionTower(config, F32, F32)
    pixels = np.random.default_rng(0).normal(size=(1, 14, 14, 3)).astype(np.float32)
    init = quick_jit(tower.init)(jax.random.key(0), pixels)
    run = quick_jit(tower.apply)
    before = run(init, pixels)
    pixels[:, 12:], pixels[:, :, 12:] = 9.0, 9.0
    np.testing.assert_array_equal(run(init, pixels), before)
    pixels[:, 11] = 9.0
    assert np.abs(run(init, pixels) - before).max() > 0


def test_activation_is_the_familys_unless_it_is_named():
    assert CONFIG.mlp_activation == "gelu_tanh"
    assert dataclasses.replace(CONFIG, family="clip").mlp_activation == "quick_gelu"
    assert dataclasses.replace(CONFIG, family="clip", activation="gelu").mlp_activation == "gelu"
