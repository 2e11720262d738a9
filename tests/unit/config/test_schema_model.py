"""What a model's section may not say."""

import dataclasses

import pytest

from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_model import ModelConfig, RopeScaling, VisualTokensConfig

LLM = llm_preset("digits")
VISION = vision_preset("digits")
TOKENS = VisualTokensConfig(num_tokens=16)
MODEL = ModelConfig(llm=LLM, vision=VISION, visual_tokens=TOKENS)

LLM_SIZES = ["vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "embed_dim"]
LLM_SIZES += ["mlp_dim", "max_seq_len", "vocab_multiple", "scan_unroll"]
VISION_SIZES = ["image_size", "patch_size", "num_layers", "num_heads", "embed_dim", "mlp_dim"]
VISION_SIZES += ["scan_unroll"]
SIZES = [(LLM, name) for name in LLM_SIZES] + [(VISION, name) for name in VISION_SIZES]
SIZES += [(TOKENS, "num_tokens"), (MODEL, "contrastive_dim")]


@pytest.mark.parametrize("value", [0, -1, -4])
@pytest.mark.parametrize(("config", "name"), SIZES)
def test_sizes_are_positive(config, name, value):
    assert config.problems() == []
    wrong = dataclasses.replace(config, **{name: value})
    assert wrong.problems() == [f"{name}={value} must be at least 1"]


def test_all_sizes_are_reported_together():
    wrong = dataclasses.replace(LLM, num_heads=0, num_kv_heads=0, vocab_multiple=-3)
    assert wrong.problems() == [
        "num_heads=0 must be at least 1",
        "num_kv_heads=0 must be at least 1",
        "vocab_multiple=-3 must be at least 1",
    ]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLM, "norm_eps"),
        (LLM, "rope_theta"),
        (VISION, "norm_eps"),
        (TOKENS, "softmax_temperature"),
        (RopeScaling(), "factor"),
    ],
)
def test_numbers_are_positive_and_finite(config, name, value):
    wrong = dataclasses.replace(config, **{name: value})
    assert wrong.problems() == [f"{name}={value} must be positive and finite"]


def test_an_image_holds_a_patch():
    wrong = dataclasses.replace(VISION, image_size=VISION.patch_size - 1)
    assert "is smaller than patch_size" in wrong.problems()[0]


@pytest.mark.parametrize("name", ["mlp0x_gelu", "mlpx_gelu", "mlp-1x_gelu"])
def test_a_connector_has_layers(name):
    (problem,) = dataclasses.replace(MODEL, connector=name).problems()
    assert f"connector={name!r} is neither 'linear' nor 'mlpNx_gelu'" in problem
    assert dataclasses.replace(MODEL, connector="mlp10x_gelu").problems() == []
