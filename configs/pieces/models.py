"""Models, composed from published parts."""

from metamorph_jax.config.presets import llm_preset, vision_preset

NUM_IMAGE_TOKENS = 2  # <image_start> and <image_end>, appended to the vocabulary


def metamorph_8b():
    """Returns MetaMorph's model: SigLIP SO400M, 64 visual tokens, Llama-3.1-8B."""
    return {
        "llm": llm_preset("llama31_8b", vocab_size=128256 + NUM_IMAGE_TOKENS),
        "vision": vision_preset("siglip_so400m_14_384"),
        "visual_tokens": {"reduction": "interpolation", "num_tokens": 64},
        "connector": "mlp2x_gelu",
        "vision_head": "mlp",
        "dtype": "bfloat16",
        "init_from": ["models/Llama-3.1-8B-Instruct", "models/siglip-so400m-patch14-384"],
    }
