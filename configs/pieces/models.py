"""Models, composed from published parts."""

import dataclasses

from metamorph_jax.config.presets import llm_preset, vision_preset

NUM_IMAGE_TOKENS = 2  # <image_start> and <image_end>, appended to the vocabulary


def metamorph_8b():
    """Returns MetaMorph's model: SigLIP SO400M, 64 visual tokens, Llama-3.1-8B."""
    return metamorph("llama31_8b", "models/Llama-3.1-8B-Instruct")


def metamorph_70b():
    """Returns the larger model of the paper's studies, with Llama-3-70B."""
    return metamorph("llama3_70b", "models/Meta-Llama-3-70B-Instruct")


def metamorph(preset, folder):
    """Returns MetaMorph's model around a Llama 3 decoder, whose weights are in `folder`."""
    return {
        "llm": dataclasses.asdict(llm_preset(preset, vocab_size=128256 + NUM_IMAGE_TOKENS)),
        "vision": vision_preset("siglip_so400m_14_384"),
        "visual_tokens": {"reduction": "interpolation", "num_tokens": 64},
        "connector": "mlp2x_gelu",
        "vision_head": "mlp",
        "dtype": "bfloat16",
        "init_from": [folder, "models/siglip-so400m-patch14-384"],
    }


def llava15(preset, folder):
    """Returns LLaVA-1.5's model: CLIP L/14 at 336 pixels, all 576 patches, a Vicuna decoder.

    Source: llava.md 2.1.
    """
    return {
        "llm": dataclasses.asdict(llm_preset(preset)),
        "vision": vision_preset("clip_vit_l_14_336"),
        "visual_tokens": {"reduction": "none", "num_tokens": 576, "normalize": False},
        "connector": "mlp2x_gelu",
        "vision_head": "none",
        "dtype": "bfloat16",
        "init_from": [folder, "models/clip-vit-large-patch14-336"],
    }
