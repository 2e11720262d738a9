"""`config.json` of every family, read and written; tests/parity holds the weights to them."""

import dataclasses
import json

import pytest
import transformers

from metamorph_jax.config.presets import LLM, VISION
from metamorph_jax.config.schema_model import LlamaConfig, RopeScaling, VisionConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub import decoder_configs, tower_configs
from metamorph_jax.hub.configs import (
    find_preset,
    llm_config_json,
    read_llm_config,
    read_vision_config,
    vision_config_json,
)

DECODERS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
}
TOWERS = {"siglip": transformers.SiglipVisionConfig, "clip": transformers.CLIPVisionConfig}
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
}
SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}


@pytest.mark.parametrize("family", DECODERS)
def test_defaults_are_those_of_transformers(family):
    theirs = DECODERS[family]()
    for key, value in decoder_configs.NESTED[family].items():
        if key == "sliding_window" and family == "qwen2":
            continue  # their object drops it unless use_sliding_window
        assert getattr(theirs, key) == value, key


@pytest.mark.parametrize("family", TOWERS)
def test_defaults_of_towers_are_those_of_transformers(family):
    theirs = TOWERS[family]()
    for key, value in tower_configs.NESTED[family].items():
        assert getattr(theirs, key) == value, key


@pytest.mark.parametrize("name", LLM)
def test_decoders_there_and_back(name):
    written = json.loads(json.dumps(llm_config_json(LLM[name])))
    read = read_llm_config(written)
    assert dataclasses.replace(read, **_speed(LLM[name])) == LLM[name]
    # As transformers understands it, in its newer spelling.
    theirs = DECODERS[written["model_type"]](**written).to_dict()
    assert "rope_parameters" in theirs and "rope_theta" not in theirs
    assert read_llm_config(theirs) == read
    assert find_preset(read) == name


def _speed(config: LlamaConfig) -> dict:
    return {n: getattr(config, n) for n in ("vocab_multiple", "remat", "scan_unroll")}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling(kind="linear", factor=2.5)])
def test_odd_decoders_there_and_back(activation, scaling):
    config = dataclasses.replace(LLM["digits"], activation=activation, rope_scaling=scaling)
    assert read_llm_config(llm_config_json(config)) == dataclasses.replace(config, scan_unroll=1)


@pytest.mark.parametrize("name", VISION)
def test_towers_there_and_back(name):
    vision = dataclasses.replace(VISION[name], scan_unroll=1, remat="none")
    written = json.loads(json.dumps(vision_config_json(vision)))
    read = read_vision_config(written, -1)
    # The later blocks, of which we have no weights, are not written.
    used = dataclasses.replace(vision, num_layers=vision.num_used_layers, feature_layer=-1)
    assert read == used
    theirs = TOWERS[vision.family](**written).to_dict()
    assert read_vision_config(theirs, -1) == read
    whole = written | {"num_hidden_layers": vision.num_layers}
    assert find_preset(read_vision_config(whole, -2, cls_policy="cls_patch")) == name


def test_published_files():
    read = read_llm_config(LLAMA31)
    assert read == dataclasses.replace(LLM["llama31_8b"], remat="none")
    assert find_preset(read) == "llama31_8b"
    assert find_preset(dataclasses.replace(read, norm_eps=1e-6)) is None
    assert read_vision_config(SO400M, -1) == dataclasses.replace(
        VISION["siglip_so400m_14_384"], remat="none"
    )
    # SigLIP 2 of fixed resolution, with its text side; usual values are left out.
    siglip2 = {"model_type": "siglip", "vision_config": SO400M, "text_config": {"vocab_size": 2560}}
    assert read_vision_config(siglip2, -1) == read_vision_config(SO400M, -1)


def test_a_section_leaves_out_what_is_usual_but_a_file_does_not():
    base = read_vision_config({"model_type": "clip", "vision_config": {}}, -2)
    assert base == VisionConfig(
        family="clip",
        image_size=224,
        patch_size=32,
        num_layers=12,
        num_heads=12,
        embed_dim=768,
        mlp_dim=3072,
        norm_eps=1e-5,
        feature_layer=-2,
    )
    with pytest.raises(UserError, match=r"^here: hidden_size is missing; expected a whole number$"):
        read_llm_config({"model_type": "llama", "vocab_size": 10, **_layers(1)}, "here")


def _layers(count) -> dict:
    return {"num_hidden_layers": count, "num_attention_heads": 2}


def test_old_files_have_no_groups_and_no_head_size():
    old = {k: v for k, v in LLAMA31.items() if k not in ("num_key_value_heads", "rope_scaling")}
    read = read_llm_config(old)
    assert (read.num_kv_heads, read.head_dim, read.rope_scaling) == (32, 128, RopeScaling())
    scaled = read_llm_config(old | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert scaled.rope_scaling == RopeScaling(kind="linear", factor=2.0)


MISTRAL = LLAMA31 | {"model_type": "mistral", "max_position_embeddings": 32768}
QWEN2 = LLAMA31 | {"model_type": "qwen2", "max_window_layers": 28, "sliding_window": 4096}


@pytest.mark.parametrize(
    ("values", "longest"),
    [
        (MISTRAL, 4096),  # as transformers takes it to be
        (MISTRAL | {"sliding_window": None}, 32768),
        (MISTRAL | {"sliding_window": 512}, 512),
        (MISTRAL | {"sliding_window": 65536}, 32768),
        (QWEN2 | {"use_sliding_window": False}, 131072),
        (QWEN2 | {"use_sliding_window": True}, 4096),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 32}, 131072),
        (QWEN2 | {"use_sliding_window": True, "layer_types": ["full_attention"] * 32}, 131072),
        (QWEN2 | {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 32}, 4096),
        (LLAMA31 | {"sliding_window": 512}, 131072),  # Llama has none, whatever stands there
    ],
)
def test_a_sliding_window_is_the_longest_sequence(values, longest, capsys):
    assert read_llm_config(values, "a.json").max_seq_len == longest
    said = capsys.readouterr().err
    if longest == values["max_position_embeddings"]:
        assert said == ""
    else:
        assert said.startswith(f"a.json: layers look back sliding_window={longest} tokens")
