"""A damaged or hostile `config.json` is a message with file and key, never a traceback."""

import json

import numpy as np
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import read_llm_config, read_model_config, read_vision_config
from tests.unit.hub.test_configs import LLAMA31, SO400M
from tests.unit.hub.test_model_configs import CLIP_L, EXPORT, INTERLEAVE, METAMORPH, NATIVE15

WRONG = [None, -1, 0, 10**30, float("nan"), float("inf"), 1.5, True, "4096", [], {}, [[1]], ""]
ROPE = LLAMA31["rope_scaling"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -4096}, r"hidden_size is -4096 \(int\); expected a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps is nan \(float\)"),
        ({"vocab_size": "128256"}, r"vocab_size is '128256' \(str\)"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 is no multiple of num_key_value_head"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"hidden_act": "relu"}, r"hidden_act is 'relu' \(str\); supported: 'silu', 'gelu'"),
        ({"attention_bias": True}, r"attention_bias is True \(bool\); supported: false"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is"),
        ({"model_type": "mixtral"}, r"model_type is 'mixtral' .*'llama', 'mistral', 'qwen2'"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"rope_scaling": ROPE | {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling.type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": ROPE | {"factor": "8"}}, "rope_scaling.factor is '8'"),
        ({"rope_scaling": ROPE | {"high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor is"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'"),
        (
            {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "rope_parameters.full_attention is",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        (
            {"model_type": "mistral", "layer_types": ["chunked_attention"]},
            "layer_types is .*'full_attention', 'sliding_attention'",
        ),
    ],
)
def test_decoders(changes, message):
    with pytest.raises(UserError, match=message) as error:
        read_llm_config(LLAMA31 | changes, "folder/config.json")
    assert str(error.value).startswith("folder/config.json: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2_vision_model"}, "NaFlex.*fixed resolution"),
        ({"model_type": "dinov2"}, "model_type is 'dinov2'"),
        ({"image_size": [384, 512]}, r"image_size is \[384, 512\].*squares"),
        ({"image_size": 10**6}, "image_size is 1000000"),
        ({"patch_size": 400}, "image_size=384 is smaller than patch_size=400"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 7}, "hidden_size=1152 is no multiple of num_attention_heads=7"),
    ],
)
def test_towers(changes, message):
    with pytest.raises(UserError, match=message):
        read_vision_config(SO400M | changes, -1)


def test_old_copies_of_a_section_must_agree():
    copy = CLIP_L["vision_config"]
    assert read_vision_config(CLIP_L | {"vision_config_dict": copy}, -1).image_size == 336
    with pytest.raises(UserError, match="image_size differs from that of vision_config"):
        read_vision_config(CLIP_L | {"vision_config_dict": copy | {"image_size": 224}}, -1)


def test_a_square_may_be_two_numbers():
    assert read_vision_config(SO400M | {"image_size": [384, 384]}, -1).image_size == 384


@pytest.mark.parametrize("value", [[], "text", 3, None])
def test_a_file_that_holds_something_else(value):
    with pytest.raises(UserError, match=r"config\.json: the file is"):
        read_model_config(value)


@pytest.mark.parametrize("file", ["INTERLEAVE", "NATIVE15", "METAMORPH", "EXPORT"])
def test_any_value_anywhere(file):
    """Every key of a file, inner ones too, with every kind of wrong value, and without the key."""
    values = {
        "INTERLEAVE": (INTERLEAVE, None),
        "NATIVE15": (NATIVE15, CLIP_L),
        "METAMORPH": (METAMORPH, SO400M),
        "EXPORT": (EXPORT, None),
    }
    config, tower = values[file]
    refused = 0
    for change in mistakes(config):
        try:
            read_model_config(change, tower)
        except UserError as error:
            assert str(error).startswith("config.json")
            refused += 1
    assert refused > 50


def mistakes(config: dict):
    """Yields copies of a file, each with one mistake."""
    for key, value in config.items():
        yield {k: v for k, v in config.items() if k != key}
        for wrong in WRONG:
            yield config | {key: wrong}
        if isinstance(value, dict):
            for inner in mistakes(value):
                yield config | {key: inner}


def test_random_values():
    """Several mistakes at once, from JSON as it is read from a file."""
    rng = np.random.default_rng(0)
    keys = [*METAMORPH, "rope_parameters", "quantization_config", "num_experts", "head_dim"]
    for _ in range(300):
        chosen = rng.choice(keys, 3)
        changes = {str(key): WRONG[int(rng.integers(len(WRONG)))] for key in chosen}
        text = json.dumps(METAMORPH | changes)
        try:
            read_model_config(json.loads(text), SO400M)
        except UserError as error:
            assert str(error).startswith("config.json: ")
