"""The FLOP formula against published arithmetic, and parameter counts against published sizes."""

import dataclasses

import numpy as np
import pytest

from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_model import ModelConfig, VisualTokensConfig
from metamorph_jax.metrics.flops import (
    BatchCounts,
    contrastive_flops,
    count_batch,
    forward_flops,
    matmul_params,
    model_flops,
    num_params,
    vision_flops,
)

VPIT_8B = ModelConfig(llm=llm_preset("llama31_8b"), vision=vision_preset("siglip_so400m_14_384"))
TEXT = {
    length: BatchCounts(num_tokens=length, sum_squared_lengths=length**2)
    for length in (2048, 4096, 8192)
}


@pytest.mark.parametrize(("length", "gigaflops"), [(2048, "46.6"), (4096, "48.2"), (8192, "51.5")])
def test_training_flops_per_token_of_llama31_8b(length, gigaflops):
    per_token = model_flops(VPIT_8B, TEXT[length], trained=("/",)) / length
    assert f"{per_token / 1e9:.1f}" == gigaflops


def test_formula_is_6n_plus_attention():
    sizes = matmul_params(VPIT_8B)
    num_matmul = sizes["language_model/blocks"] + sizes["language_model/lm_head"]
    assert f"{num_matmul / 1e9:.3f}" == "7.505"
    llm = VPIT_8B.llm
    expected = 6 * num_matmul * 4096 + 6 * llm.num_layers * llm.embed_dim * 4096**2
    assert model_flops(VPIT_8B, TEXT[4096], trained=("/",)) == expected
    assert forward_flops(VPIT_8B, TEXT[4096]) == expected / 3


def test_packing_pays_only_for_its_own_squares():
    packed = BatchCounts(num_tokens=4096, sum_squared_lengths=4 * 1024**2)
    difference = model_flops(VPIT_8B, TEXT[4096], ("/",)) - model_flops(VPIT_8B, packed, ("/",))
    llm = VPIT_8B.llm
    assert difference == 6 * llm.num_layers * llm.embed_dim * (4096**2 - 4 * 1024**2)


def test_adapter_training_skips_the_decoders_weight_gradients():
    counts = BatchCounts(num_tokens=4096, sum_squared_lengths=4096**2)
    adapter = model_flops(VPIT_8B, counts, trained=("connector",)) / 4096
    assert f"{adapter / 1e9:.0f}" == "33"  # 4 N_mm = 30.0, attention in full
    head_only = model_flops(VPIT_8B, counts, trained=("vision_head",))
    assert head_only == forward_flops(VPIT_8B, counts)  # no gradient enters the decoder


def test_siglip_forward_is_two_thirds_of_a_teraflop_per_image():
    assert f"{vision_flops(VPIT_8B.vision) / 1e12:.3f}" in {"0.666", "0.667"}
    assert contrastive_flops(VPIT_8B, 2) == 6 * vision_flops(VPIT_8B.vision)


def test_frozen_tower_costs_one_forward():
    images = BatchCounts(num_tokens=0, num_images=1)
    frozen = model_flops(VPIT_8B, images, trained=("/",), excluded=("vision_tower",))
    connector = 2 * matmul_params(VPIT_8B)["connector"] * 64
    assert frozen == vision_flops(VPIT_8B.vision) + 2 * connector


def test_num_params_match_published_sizes():
    counts = num_params(VPIT_8B)
    llama = sum(count for name, count in counts.items() if name.startswith("language_model/"))
    assert counts["vision_tower"] == 412_984_944
    assert counts["connector"] == 21_504_000
    assert counts["vision_head"] == 21_501_056
    assert llama == 8_030_261_248


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama3_70b", 70_553_706_496),
        ("llama32_1b", 1_235_814_400),
        ("llama32_3b", 3_212_749_824),
        ("mistral_7b", 7_241_732_096),
        ("qwen2_05b", 494_032_768),
        ("qwen2_7b", 7_615_616_512),
    ],
)
def test_num_params_of_other_decoders(preset, expected):
    config = dataclasses.replace(VPIT_8B, llm=llm_preset(preset))
    counts = num_params(config)
    assert sum(n for name, n in counts.items() if name.startswith("language_model/")) == expected


def test_clip_counts_its_class_token_and_stops_at_the_feature_layer():
    clip = ModelConfig(
        llm=llm_preset("llama2_7b"),
        vision=vision_preset("clip_vit_l_14"),
        visual_tokens=VisualTokensConfig(reduction="none", num_tokens=256),
    )
    whole = dataclasses.replace(clip.vision, feature_layer=-1)
    # CLIP ViT-L/14's vision model has 303,179,776 parameters, 2,048 of them in its post-layernorm.
    assert num_params(dataclasses.replace(clip, vision=whole))["vision_tower"] == 303_177_728
    block = 303_177_728 - num_params(clip)["vision_tower"]
    assert block == 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024


def test_count_batch_reads_packed_rows():
    batch = {
        "segment_ids": np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]),
        "visual_index": np.array([[-1, 0, 1, -1, 2, -1], [-1, -1, 4, 5, -1, -1]]),
        "visual_target": np.array([[0, 1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]]),
    }
    counts = count_batch(batch, num_visual_tokens=2)
    assert counts == BatchCounts(
        num_tokens=9, sum_squared_lengths=9 + 4 + 16, num_images=3, num_visual_targets=2
    )


def test_count_batch_of_padding_alone_is_zero():
    padding = np.zeros((2, 4), np.int32)
    batch = {"segment_ids": padding, "visual_index": padding - 1, "visual_target": padding - 1}
    assert count_batch(batch, 4) == BatchCounts(num_tokens=0)


def test_num_params_is_what_the_model_allocates():
    from metamorph_jax.models.init import abstract_params
    from metamorph_jax.models.init import num_params as count_leaves

    tokens = VisualTokensConfig(num_tokens=16)
    config = ModelConfig(
        llm=llm_preset("digits", tie_embeddings=False, vocab_size=320, vocab_multiple=64),
        vision=vision_preset("digits"),
        visual_tokens=tokens,
        vision_head="mlp2x_gelu",
        connector="mlp3x_gelu",
        contrastive_dim=48,
        image_newline=True,
    )
    clip = dataclasses.replace(
        config,
        llm=dataclasses.replace(config.llm, tie_embeddings=True, qkv_bias=True),
        vision=dataclasses.replace(config.vision, family="clip", feature_layer=-2),
        contrastive_dim=None,
    )
    llava = dataclasses.replace(clip, vision_head="none")
    for model in (config, clip, llava):
        tree = abstract_params(model)
        counts = num_params(model)
        for part in tree:
            counted = sum(n for name, n in counts.items() if name.split("/")[0] == part)
            assert counted == count_leaves(tree[part]), part
        assert sum(counts.values()) == count_leaves(tree)
