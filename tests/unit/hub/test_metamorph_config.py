"""config.json of the export: both ways, both spellings, and what is refused."""

import dataclasses
import json

import pytest
import torch

from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_model import ModelConfig, RopeScaling, VisualTokensConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import arithmetic, read_model_config
from metamorph_jax.hub.layouts import OwnName, to_theirs
from metamorph_jax.hub.metamorph_config import (
    choose_placeholder,
    metamorph_config_json,
)
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.modeling_metamorph import (
    MetaMorphForConditionalGeneration,
    MetaMorphModel,
)
from tests import injection
from tests.data_files import small_tokenizer
from tests.tiny import tiny_model

PUBLISHED = ModelConfig(
    llm=llm_preset("llama31_8b", vocab_size=128258, remat="none", vocab_multiple=128),
    vision=vision_preset("siglip_so400m_14_384", remat="none"),
    dtype="bfloat16",
    param_dtype="bfloat16",
)
LINEAR_ROPE = RopeScaling(kind="linear", factor=4.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def other_config():
    base = tiny_model(connector="mlp3x_gelu", vision_head="linear")
    return dataclasses.replace(
        base,
        llm=dataclasses.replace(
            base.llm,
            vocab_size=400,
            vocab_multiple=128,
            tie_embeddings=True,
            rope_scaling=LINEAR_ROPE,
            rope_theta=500.0,
        ),
        vision=dataclasses.replace(base.vision, feature_layer=-2, image_size=8),
        visual_tokens=VisualTokensConfig(reduction="none", num_tokens=4, normalize=False),
    )


def same(read, config):
    """Returns whether two models compute the same: how they do it is no matter of the file."""
    parts = ("llm", "vision", "visual_tokens", "connector", "vision_head")
    ours, theirs = ([vars(model)[part] for part in parts] for model in (read, config))
    ours[:2], theirs[:2] = map(arithmetic, ours[:2]), map(arithmetic, theirs[:2])
    layers = [model.vision.feature_layer for model in (read, config)]
    return ours == theirs and layers[0] == layers[1]


@pytest.mark.parametrize("config", [PUBLISHED, other_config()], ids=["published", "other"])
def test_both_ways_and_through_transformers(config, tokenizer, tmp_path):
    fields = json.loads(json.dumps(metamorph_config_json(config, tokenizer, config.dtype)))
    assert same(read_model_config(fields), config)
    loaded = MetaMorphConfig.from_dict(fields)
    loaded.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved["text_config"]
    assert same(read_model_config(saved), config)
    again = MetaMorphConfig.from_pretrained(tmp_path)
    assert again.to_dict() == loaded.to_dict()
    assert again.text_config.rope_parameters == loaded.text_config.rope_parameters


def test_published_sizes(tokenizer):
    """The values that stand in the base checkpoints' own files."""
    fields = metamorph_config_json(PUBLISHED, tokenizer, "bfloat16")
    text, vision = fields["text_config"], fields["vision_config"]
    assert text["rope_theta"] == 500000.0
    assert text["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert (text["hidden_size"], text["intermediate_size"]) == (4096, 14336)
    assert (vision["hidden_size"], vision["num_hidden_layers"]) == (1152, 27)
    config = MetaMorphConfig.from_dict(fields)
    assert config.projector_widths == (1152, 4096, 4096)
    assert config.vision_head_widths == (4096, 4096, 1152)
    assert config.num_vision_blocks == 27
    assert config.dtype == torch.bfloat16


def test_placeholder_comes_from_the_tokenizer(tokenizer):
    outside = choose_placeholder(tokenizer, 300)
    assert outside == ("<image>", 300)
    llama = injection.tokenizer("bpe_llama3")
    token, id_ = choose_placeholder(llama, llama.vocab_size)
    assert (token, id_) == ("<|reserved_special_token_0|>", llama.names[token])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"family": "clip"}}, "family is 'clip'"),
        ({"visual_tokens": {"reduction": "concat_interpolation"}}, "concat_interpolation"),
        ({"visual_tokens": {"softmax_temperature": 0.1}}, "softmax_temperature is set"),
        ({"visual_tokens": {"reduction": "none", "num_tokens": 5}}, "num_tokens=5 is no square"),
        ({"llm": {"qkv_bias": True}}, "qkv_bias is set"),
        ({"llm": {"vocab_size": 20}}, r"tokenizer has \d+ ids, model.llm.vocab_size is 20"),
    ],
)
def test_what_the_classes_do_not_have_is_refused(changes, message, tokenizer):
    config = tiny_model()
    for part, fields in changes.items():
        part_changed = dataclasses.replace(getattr(config, part), **fields)
        config = dataclasses.replace(config, **{part: part_changed})
    with pytest.raises(UserError, match=message):
        metamorph_config_json(config, tokenizer, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mllama"}, "model_type.*mllama"),
        ({"text_config": 3}, "text_config"),
        ({"image_token_reduction": "mixer"}, "image_token_reduction.*mixer"),
        ({"num_image_tokens": "64"}, "num_image_tokens.*64"),
        ({"vision_feature_layer": 9}, "vision_feature_layer.*9"),
        ({"projector_type": "mlp"}, "projector_type.*mlp"),
    ],
)
def test_other_files_are_refused(changes, message, tokenizer):
    config = tiny_model()
    llm = dataclasses.replace(config.llm, vocab_size=400)
    fields = metamorph_config_json(dataclasses.replace(config, llm=llm), tokenizer, "float32")
    with pytest.raises(UserError, match=message):
        read_model_config(fields | changes)


def test_unknown_rope_is_refused(tokenizer):
    fields = metamorph_config_json(PUBLISHED, tokenizer, "float32")
    fields["text_config"] |= {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    with pytest.raises(UserError, match="yarn"):
        read_model_config(fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_reduction": "mixer"}, "expected 'none' or 'interpolation'"),
        ({"image_token_reduction": "none"}, "but the tower has 196 tokens"),
        ({"num_image_tokens": 5}, "no square"),
        ({"projector_type": "mlp2"}, "expected 'linear' or 'mlpNx_gelu'"),
        ({"vision_head_type": "deep"}, "expected one of 'linear', 'mlp', 'mlp2x_gelu'"),
        ({"vision_feature_layer": -14}, "outside of a tower of 12 blocks"),
    ],
)
def test_the_class_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        MetaMorphConfig(**changes)


def test_ids_have_no_usual_value():
    with pytest.raises(ValueError, match="lacks image_token_id, image_start_token_id"):
        MetaMorphModel(MetaMorphConfig())


@pytest.mark.parametrize("config", [PUBLISHED, other_config()], ids=["published", "other"])
def test_names_in_memory_are_those_on_disk(config, tokenizer):
    """At full size, without its numbers: no renaming by any release applies."""
    fields = metamorph_config_json(config, tokenizer, "float32")
    with torch.device("meta"):
        model = MetaMorphForConditionalGeneration(MetaMorphConfig.from_dict(fields))
    expected = {
        to_theirs("composite", OwnName(part, name))
        for part, table in part_tables(config).items()
        for name in table.names()
    }
    assert {name for name, _ in model.named_parameters()} == expected
    tied = {"lm_head.weight"} if config.llm.tie_embeddings else set()
    assert set(model.state_dict()) - tied == expected
