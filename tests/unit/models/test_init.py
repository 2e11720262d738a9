"""Shapes, axes and values of fresh parameters. The tree of the 8B model is pinned name by name."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from metamorph_jax.config.presets import LLM, VISION
from metamorph_jax.config.schema_model import ModelConfig, VisualTokensConfig
from metamorph_jax.models.init import abstract_params, init_params, logical_axes, num_params
from metamorph_jax.sharding.rules import spec_for
from tests import tolerances
from tests.tiny import tiny_model

SIGLIP = VISION["siglip_so400m_14_384"]
PAPER = ModelConfig(llm=LLM["llama31_8b"], vision=SIGLIP)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_published_parameter_counts():
    params = abstract_params(PAPER)
    assert num_params(params["vision_tower"]) == 412_984_944
    assert num_params(params["connector"]) == 21_504_000
    assert num_params(params["vision_head"]) == 21_501_056
    padding = 2 * (PAPER.llm.padded_vocab_size - PAPER.llm.vocab_size) * PAPER.llm.embed_dim
    assert padding > 0
    assert num_params(params["language_model"]) - padding == 8_030_261_248


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama2_7b", 6_738_415_616), ("llama2_13b", 13_015_864_320), ("llama3_70b", 70_553_706_496)],
)
def test_other_decoders(name, count):
    llm = dataclasses.replace(LLM[name], vocab_multiple=1)
    params = abstract_params(ModelConfig(llm=llm, vision=SIGLIP))
    assert num_params(params["language_model"]) == count


@pytest.mark.parametrize("name", ["clip_vit_l_14", "clip_vit_l_14_336"])
def test_clip_towers(name):
    config = dataclasses.replace(VISION[name], feature_layer=-1)
    params = abstract_params(
        ModelConfig(
            llm=LLM["digits"],
            vision=config,
            visual_tokens=VisualTokensConfig(reduction="none", num_tokens=config.num_tokens),
        )
    )
    # Source: transformers CLIPVisionModel without post_layernorm (2 x 1024).
    whole = {"clip_vit_l_14": 303_179_776, "clip_vit_l_14_336": 303_507_456}[name]
    assert num_params(params["vision_tower"]) == whole - 2 * 1024


def test_tree_of_the_paper_is_pinned():
    shapes, axes = flat(abstract_params(PAPER)), flat(logical_axes(PAPER))
    assert list(shapes) == list(axes)
    pinned = {
        "vision_tower/patch_embed/kernel": ((14, 14, 3, 1152), "patch patch patch vision_embed"),
        "vision_tower/position_embed/embedding": ((729, 1152), "positions vision_embed"),
        "vision_tower/blocks/attention/query/kernel": (
            (27, 1152, 16, 72),
            "layers vision_embed vision_heads head_dim",
        ),
        "vision_tower/blocks/attention/out/bias": ((27, 1152), "layers vision_embed"),
        "vision_tower/blocks/mlp/up/kernel": ((27, 1152, 4304), "layers vision_embed vision_mlp"),
        "connector/layers_0/kernel": ((1152, 4096), "visual mlp"),
        "connector/layers_1/kernel": ((4096, 4096), "mlp embed"),
        "language_model/embed_tokens/embedding": ((128512, 4096), "vocab embed"),
        "language_model/blocks/attention/key/kernel": (
            (32, 4096, 8, 128),
            "layers embed kv_heads head_dim",
        ),
        "language_model/blocks/attention/out/kernel": (
            (32, 32, 128, 4096),
            "layers heads head_dim embed",
        ),
        "language_model/blocks/mlp/down/kernel": ((32, 14336, 4096), "layers mlp embed"),
        "language_model/final_norm/scale": ((4096,), "embed"),
        "language_model/lm_head/kernel": ((4096, 128512), "embed vocab"),
        "vision_head/layers_0/kernel": ((4096, 4096), "embed mlp"),
        "vision_head/layers_1/kernel": ((4096, 1152), "mlp visual"),
        "vision_head/layers_1/bias": ((1152,), "visual"),
    }
    for path, (shape, names) in pinned.items():
        assert shapes[path].shape == shape, path
        assert axes[path] == tuple(names.split()), path
    # 17 of the tower, 4 of the connector, 12 of the decoder, 4 of the vision head.
    assert len(shapes) == 3 + 16 + 4 + 12 + 4


def test_tree_of_llava_and_qwen2_is_pinned():
    vision = VISION["clip_vit_l_14_336"]
    tokens = VisualTokensConfig(reduction="none", num_tokens=576, normalize=False)
    llava = ModelConfig(
        llm=LLM["qwen2_7b"], vision=vision, visual_tokens=tokens, vision_head="none"
    )
    shapes, axes = flat(abstract_params(llava)), flat(logical_axes(llava))
    assert {path.split("/")[0] for path in shapes} == {
        "vision_tower",
        "connector",
        "language_model",
    }
    pinned = {
        "language_model/blocks/attention/query/bias": ((28, 28, 128), "layers heads head_dim"),
        "language_model/blocks/attention/key/bias": ((28, 4, 128), "layers kv_heads head_dim"),
        "language_model/blocks/attention/value/bias": ((28, 4, 128), "layers kv_heads head_dim"),
        "vision_tower/class_embed/embedding": ((1024,), "vision_embed"),
        "vision_tower/blocks/mlp/up/kernel": ((23, 1024, 4096), "layers vision_embed vision_mlp"),
        "connector/layers_0/kernel": ((1024, 3584), "visual mlp"),
    }
    for path, (shape, names) in pinned.items():
        assert shapes[path].shape == shape, path
        assert axes[path] == tuple(names.split()), path
    # 21 of the tower, 4 of the connector, 15 of the decoder.
    assert len(shapes) == 5 + 16 + 4 + 15


@pytest.mark.parametrize("name", LLM)
def test_every_parameter_has_a_partition(name):
    config = ModelConfig(llm=LLM[name], vision=SIGLIP, contrastive_dim=64)
    sizes = {"data": 2, "fsdp": 4, "tensor": 2}
    axes = flat(logical_axes(config))
    for path, leaf in flat(abstract_params(config)).items():
        spec = spec_for(axes[path], leaf.shape, sizes)
        # All that is large is split, over fsdp at least.
        if math.prod(leaf.shape) > 10_000_000:
            assert "fsdp" in spec, (path, spec)


def test_values_follow_their_rules():
    config = tiny_model(contrastive_dim=6, image_newline=True)
    params = flat(init_params(config, jax.random.key(0)))
    abstract = flat(abstract_params(config))
    assert {k: (v.shape, v.dtype) for k, v in params.items()} == {
        k: (v.shape, v.dtype) for k, v in abstract.items()
    }
    for path, value in params.items():
        name = path.split("/")[-1]
        if name == "scale":
            assert (value == 1).all(), path
        elif name == "bias" and not path.startswith("connector"):
            assert not value.any(), path
        elif name in ("kernel", "embedding"):
            assert value.std() > 0.01, path
    assert np.abs(params["connector/layers_0/bias"]).max() > 0
    scale = params["contrastive/logit_scale"]
    np.testing.assert_allclose(scale, math.log(10), rtol=tolerances.FLOAT32_REORDERED)
    assert params["contrastive/logit_bias"] == -5
    # Sixteen draws of deviation 1 / sqrt(16), as LLaVA has it.
    assert 0.1 < np.std(params["image_newline/embedding"]) < 0.5
    assert flat(logical_axes(config))["image_newline/embedding"] == ("embed",)
    blocks = np.asarray(params["language_model/blocks/mlp/up/kernel"])
    assert np.abs(blocks[0] - blocks[1]).max() > 0.01  # every block has numbers of its own


def test_param_dtype():
    params = abstract_params(tiny_model(param_dtype="bfloat16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
