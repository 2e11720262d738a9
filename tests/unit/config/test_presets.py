"""Published sizes."""

import pytest

from metamorph_jax.config.presets import LLM, VISION, llm_preset, vision_preset
from metamorph_jax.errors import UserError


def test_the_promised_presets_are_there():
    assert {"llama2_7b", "llama2_13b", "llama3_8b", "llama31_8b", "llama3_70b", "digits"} <= set(
        LLM
    )
    assert {"siglip_so400m_14_384", "clip_vit_l_14", "clip_vit_l_14_336", "digits"} <= set(VISION)


@pytest.mark.parametrize("config", [*LLM.values(), *VISION.values()])
def test_presets_have_no_problems(config):
    assert config.problems() == []


def test_token_counts_of_the_towers():
    assert VISION["siglip_so400m_14_384"].num_tokens == 729
    assert VISION["clip_vit_l_14_336"].num_tokens == 576
    assert vision_preset("clip_vit_l_14", cls_policy="cls_patch").num_tokens == 257
    assert VISION["clip_vit_l_14"].num_used_layers == 23


def test_vocabulary_is_padded_to_its_multiple():
    assert llm_preset("llama31_8b", vocab_size=128258).padded_vocab_size == 128512


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean llama31_8b\?"):
        llm_preset("llama3.1_8b")
