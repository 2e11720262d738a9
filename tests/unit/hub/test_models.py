"""The mapping tables against the parameter tree of the models, and the names of releases."""

import dataclasses

import jax
import numpy as np
import pytest

from metamorph_jax.config.schema_model import VisualTokensConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub import metamorph
from metamorph_jax.hub.layouts import to_own
from metamorph_jax.models.init import abstract_params
from tests.model_helpers import random_params
from tests.tiny import tiny_model

BASE = tiny_model()
TOWER = "model.vision_tower.vision_tower.vision_model."
CONFIGS = {
    "siglip": BASE,
    "clip": dataclasses.replace(
        BASE, vision=dataclasses.replace(BASE.vision, family="clip", feature_layer=-2)
    ),
    "tied": dataclasses.replace(BASE, llm=dataclasses.replace(BASE.llm, tie_embeddings=True)),
    "qwen2": dataclasses.replace(BASE, llm=dataclasses.replace(BASE.llm, qkv_bias=True)),
    "llava": dataclasses.replace(BASE, vision_head="none"),
    "linear": dataclasses.replace(BASE, connector="linear", vision_head="linear"),
    "deep": dataclasses.replace(BASE, connector="mlp3x_gelu", vision_head="mlp2x_gelu"),
    "wide": dataclasses.replace(
        BASE, visual_tokens=VisualTokensConfig(reduction="concat_interpolation", num_tokens=4)
    ),
    "newline": dataclasses.replace(BASE, image_newline=True),
    "no blocks": dataclasses.replace(
        BASE, vision=dataclasses.replace(BASE.vision, feature_layer=0)
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_has_every_parameter(name):
    config = CONFIGS[name]
    params = random_params(config)
    tensors = metamorph.to_hf(params, config)
    back = metamorph.from_hf(tensors, config)
    assert jax.tree.structure(back) == jax.tree.structure(abstract_params(config))
    vocab = config.llm.vocab_size
    for part in ("embed_tokens", "lm_head"):
        for tree in (params, back):  # padding is not kept
            table = tree["language_model"].get(part, {})
            if "embedding" in table:
                table["embedding"] = table["embedding"][:vocab]
            if "kernel" in table:
                table["kernel"] = table["kernel"][:, :vocab]
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_padding_is_invisible_outside():
    params = random_params(BASE)
    tensors = metamorph.to_hf(params, BASE)
    assert BASE.llm.padded_vocab_size > BASE.llm.vocab_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert tensors[name].shape == (BASE.llm.vocab_size, BASE.llm.embed_dim)
    back = metamorph.from_hf(tensors, BASE)["language_model"]
    assert not back["embed_tokens"]["embedding"][BASE.llm.vocab_size :].any()
    assert not back["lm_head"]["kernel"][:, BASE.llm.vocab_size :].any()


def test_names_of_released_checkpoints():
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    released = dict(tensors)
    released["model.vision_proj.weight"] = np.ones((3, 3))
    released["model.image_newline"] = np.ones(16)
    released["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2)
    released[f"{TOWER}post_layernorm.weight"] = np.ones(8)
    released[f"{TOWER}head.probe"] = np.ones((1, 1, 8))
    jax.tree.map(
        np.testing.assert_array_equal,
        metamorph.from_hf(released, BASE),
        metamorph.from_hf(tensors, BASE),
    )


def test_later_blocks_may_be_there_but_not_be_missing():
    full = metamorph.to_hf(random_params(BASE), BASE)
    shorter = dataclasses.replace(BASE, vision=dataclasses.replace(BASE.vision, feature_layer=-2))
    params = metamorph.from_hf(full, shorter)
    assert params["vision_tower"]["blocks"]["mlp"]["up"]["kernel"].shape[0] == 1
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.1\."):
        metamorph.from_hf(metamorph.to_hf(params, shorter), BASE)


@pytest.mark.parametrize(
    ("removed", "part"),
    [
        ("model.mm_projector.2.bias", "connector"),
        ("vision_head.0.weight", "vision_head"),
        ("model.norm.weight", "language_model"),
        ("lm_head.weight", "language_model"),
        (f"{TOWER}embeddings.patch_embedding.bias", "vision_tower"),
    ],
)
def test_missing_tensor(removed, part):
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    del tensors[removed]
    with pytest.raises(UserError) as error:
        metamorph.from_hf(tensors, BASE)
    assert part in str(error.value)
    assert to_own("native", removed).name in str(error.value)


def test_all_parts_are_reported_together():
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    del tensors["model.mm_projector.2.bias"], tensors["model.norm.weight"]
    with pytest.raises(UserError) as error:
        metamorph.from_hf(tensors, BASE)
    assert "connector: " in str(error.value) and "2.bias" in str(error.value)
    assert "model.norm.weight" in str(error.value)


def test_parameters_come_in_param_dtype():
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    params = metamorph.from_hf(half, BASE)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    config = dataclasses.replace(BASE, param_dtype="bfloat16")
    params = metamorph.from_hf(tensors, config)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_newline_of_a_model_that_has_one():
    config = CONFIGS["newline"]
    tensors = metamorph.to_hf(random_params(config), config)
    newline = metamorph.from_hf(tensors, config)["image_newline"]["embedding"]
    np.testing.assert_array_equal(newline, tensors["model.image_newline"])
    del tensors["model.image_newline"]
    with pytest.raises(UserError, match=r"image_newline: .*\n.*1 missing: vector"):
        metamorph.from_hf(tensors, config)


def test_unknown_tensor():
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(16)
    with pytest.raises(UserError, match=r"1 unknown: model\.layers\.0\.self_attn\.q_proj\.bias"):
        metamorph.from_hf(tensors, BASE)


def test_untied_head_of_a_tied_model_is_ignored():
    config = CONFIGS["tied"]
    tensors = metamorph.to_hf(random_params(config), config)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert "lm_head" not in metamorph.from_hf(tensors, config)["language_model"]


def test_vocabulary_of_another_size():
    tensors = metamorph.to_hf(random_params(BASE), BASE)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-2]
    with pytest.raises(UserError, match=r"lm_head\.weight has shape \(38, 16\)"):
        metamorph.from_hf(tensors, BASE)
