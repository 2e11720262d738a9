"""Whole models: LLaVA of transformers, LLaVA and MetaMorph of their training code, our export."""

import dataclasses

import pytest
import transformers

from metamorph_jax.config.presets import LLM, VISION
from metamorph_jax.config.schema_model import ModelConfig, VisionConfig, VisualTokensConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import find_preset, read_model_config
from tests.unit.hub.test_configs import LLAMA31, SO400M

CLIP_L = {
    "model_type": "clip",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
# As on the hub: what is usual for Llama and CLIP is left out.
LLAVA15 = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": CLIP_L["vision_config"] | {"model_type": "clip_vision_model"},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
INTERLEAVE = LLAVA15 | {
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 152000,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "vision_config": SO400M | {"num_hidden_layers": 26, "vision_use_head": False},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
NATIVE15 = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
}
METAMORPH = LLAMA31 | {
    "architectures": ["MetaMorphLlamaForCausalLM"],
    "model_type": "metamorph_llama",
    "vocab_size": 128258,
    "mm_vision_tower": "siglip/CLIP-ViT-SO400M-14-384",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 1152,
    "mm_vision_select_layer": -1,
    "vision_head_type": "mlp",
    "image_token_reduction": "interpolation",
    "num_image_tokens": 64,
    "normalize_vision": True,
}
EXPORT = {
    "model_type": "metamorph",
    "text_config": LLAMA31 | {"vocab_size": 128258},
    "vision_config": SO400M,
    "num_image_tokens": 64,
    "image_token_reduction": "interpolation",
    "normalize_vision": True,
    "vision_feature_layer": -1,
    "projector_type": "mlp2x_gelu",
    "projector_hidden_act": "gelu",
    "vision_head_type": "mlp",
}
UNREDUCED = {"reduction": "none", "normalize": False}
VPIT = ModelConfig(
    llm=dataclasses.replace(LLM["llama31_8b"], remat="none", vocab_size=128258),
    vision=dataclasses.replace(VISION["siglip_so400m_14_384"], remat="none"),
)


def llava(llm: str, vision: str, vocab_size: int) -> ModelConfig:
    tower = dataclasses.replace(VISION[vision], remat="none")
    return ModelConfig(
        llm=dataclasses.replace(LLM[llm], remat="none", vocab_size=vocab_size),
        vision=tower,
        visual_tokens=VisualTokensConfig(num_tokens=tower.num_tokens, **UNREDUCED),
        vision_head="none",
    )


def test_llava_of_transformers():
    read = read_model_config(LLAVA15)
    assert read == llava("llama2_7b", "clip_vit_l_14_336", 32064)
    assert (find_preset(read.llm), find_preset(read.vision)) == ("llama2_7b", "clip_vit_l_14_336")
    theirs = transformers.LlavaConfig(**LLAVA15)
    assert read_model_config(theirs.to_dict()) == read
    assert read_model_config(theirs.to_diff_dict()) == read


def test_class_token_is_kept_on_request():
    read = read_model_config(LLAVA15 | {"vision_feature_select_strategy": "full"})
    assert (read.vision.cls_policy, read.visual_tokens.num_tokens) == ("cls_patch", 577)


def test_llava_interleave():
    read = read_model_config(INTERLEAVE)
    assert read.llm.qkv_bias and read.llm.tie_embeddings
    assert (read.llm.head_dim, read.llm.norm_eps, read.llm.max_seq_len) == (64, 1e-6, 32768)
    assert (read.vision.num_used_layers, read.visual_tokens.num_tokens) == (26, 729)
    assert read_model_config(transformers.LlavaConfig(**INTERLEAVE).to_diff_dict()) == read


@pytest.mark.parametrize("level", ["top", "text"])
def test_the_head_is_tied_if_either_level_says_so(level):
    text = LLAVA15["text_config"] | {"tie_word_embeddings": level == "text"}
    values = LLAVA15 | {"text_config": text, "tie_word_embeddings": level == "top"}
    assert read_model_config(values).llm.tie_embeddings
    assert not read_model_config(LLAVA15).llm.tie_embeddings


def test_native_llava():
    expected = llava("llama2_7b", "clip_vit_l_14_336", 32000)
    assert read_model_config(NATIVE15, CLIP_L) == expected
    # The first release calls itself as transformers does, and has one linear layer by default.
    first = {k: v for k, v in NATIVE15.items() if k != "mm_projector_type"}
    linear = dataclasses.replace(expected, connector="linear")
    assert read_model_config(first | {"model_type": "llava"}, CLIP_L) == linear
    qwen = NATIVE15 | {"model_type": "llava_qwen", "max_window_layers": 32}
    assert read_model_config(qwen, CLIP_L).llm.qkv_bias


def test_native_llava_reads_the_layer_before_last_of_siglip():
    values = NATIVE15 | {"mm_hidden_size": 1152}
    assert read_model_config(values, SO400M).vision.num_used_layers == 26
    with pytest.raises(UserError, match=r"mm_vision_select_layer is -1 .*whatever stands here"):
        read_model_config(values | {"mm_vision_select_layer": -1}, SO400M)


def test_metamorph():
    assert read_model_config(METAMORPH, SO400M) == VPIT
    assert read_model_config(EXPORT) == VPIT
    softmax = read_model_config(METAMORPH | {"apply_softmax": True}, SO400M)
    assert softmax.visual_tokens.softmax_temperature == 0.07
    whole = read_model_config(METAMORPH | {"num_image_tokens": 729}, SO400M)
    assert whole.visual_tokens.reduction == "none"


@pytest.mark.parametrize("name", ["linear", "none"])
def test_only_heads_that_predict_are_read(name):
    with pytest.raises(UserError, match=rf"vision_head_type is '{name}' .*'mlp', 'mlp2x_gelu'"):
        read_model_config(METAMORPH | {"vision_head_type": name}, SO400M)


@pytest.mark.parametrize(
    ("values", "tower", "message"),
    [
        (LLAVA15 | {"vision_feature_layer": [-2, -5]}, None, "vision_feature_layer is"),
        (
            LLAVA15 | {"vision_feature_layer": -26},
            None,
            "is -26 .*from -25 to 24",
        ),
        (LLAVA15 | {"projector_hidden_act": "relu"}, None, "projector_hidden_act is 'relu'"),
        (LLAVA15 | {"multimodal_projector_bias": False}, None, "multimodal_projector_bias is"),
        (INTERLEAVE | {"vision_feature_select_strategy": "default"}, None, "which is a patch"),
        (LLAVA15 | {"quantization_config": {"bits": 4}}, None, "quantization_config is"),
        (LLAVA15 | {"vision_config": None}, None, "vision_config is missing"),
        (LLAVA15 | {"text_config": "llama"}, None, "text_config is 'llama'"),
        (LLAVA15 | {"model_type": "llava_next"}, None, "model_type is 'llava_next'"),
        (NATIVE15, None, "mm_vision_tower is 'openai/clip-vit-large-patch14-336'"),
        (NATIVE15, SO400M, r"mm_hidden_size is 1024 \(int\); config.json of the tower has 1152"),
        (NATIVE15 | {"mm_projector_type": "identity"}, CLIP_L, "mm_projector_type is 'identity'"),
        (NATIVE15 | {"image_aspect_ratio": "anyres"}, CLIP_L, "image_aspect_ratio is 'anyres'"),
        (NATIVE15 | {"mm_resampler_type": "qformer"}, CLIP_L, "mm_resampler_type is 'qformer'"),
        (NATIVE15 | {"mm_vision_select_feature": "cls"}, CLIP_L, "mm_vision_select_feature is"),
        (METAMORPH | {"image_token_reduction": "mlpmixer"}, SO400M, "image_token_reduction is"),
        (METAMORPH | {"num_image_tokens": 0}, SO400M, "num_image_tokens is 0"),
        (METAMORPH | {"num_image_tokens": 50}, SO400M, "num_tokens=50 is no square"),
    ],
)
def test_what_we_do_not_have_is_named(values, tower, message):
    with pytest.raises(UserError, match=message) as error:
        read_model_config(values, tower)
    assert str(error.value).startswith("config.json")


def test_a_tower_of_exact_gelu():
    values = LLAVA15["vision_config"] | {"hidden_act": "gelu"}
    read = read_model_config(LLAVA15 | {"vision_config": values})
    assert isinstance(read.vision, VisionConfig) and read.vision.activation == "gelu"
    assert find_preset(read.vision) is None
