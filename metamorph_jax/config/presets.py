"""Published model sizes, by name. Each entry is a complete configuration of one part.

Source: the `config.json` files of the checkpoints named in the comments.
"""

import dataclasses

from metamorph_jax.config.schema_model import LlamaConfig, RopeScaling, VisionConfig
from metamorph_jax.errors import UserError, nearest

_LLAMA31_ROPE = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_seq_len=8192,
)

_LLAMA2_7B = LlamaConfig(
    vocab_size=32000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    embed_dim=4096,
    mlp_dim=11008,
    max_seq_len=4096,
    vocab_multiple=512,
    remat="full",
)
_LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    embed_dim=4096,
    mlp_dim=14336,
    max_seq_len=8192,
    vocab_multiple=512,
    rope_theta=500000.0,
    remat="full",
)

_LLAMA32_3B = dataclasses.replace(
    _LLAMA3_8B,
    num_layers=28,
    num_heads=24,
    embed_dim=3072,
    mlp_dim=8192,
    max_seq_len=131072,
    rope_scaling=dataclasses.replace(_LLAMA31_ROPE, factor=32.0),
    tie_embeddings=True,
)
_MISTRAL_7B = dataclasses.replace(_LLAMA2_7B, num_kv_heads=8, mlp_dim=14336)
_QWEN2_7B = LlamaConfig(
    vocab_size=152064,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    embed_dim=3584,
    mlp_dim=18944,
    max_seq_len=131072,
    vocab_multiple=512,
    rope_theta=1000000.0,
    norm_eps=1e-6,
    qkv_bias=True,
    remat="full",
)

LLM = {
    "llama2_7b": _LLAMA2_7B,  # meta-llama/Llama-2-7b, lmsys/vicuna-7b-v1.5
    "llama2_13b": dataclasses.replace(  # meta-llama/Llama-2-13b, lmsys/vicuna-13b-v1.5
        _LLAMA2_7B, num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, mlp_dim=13824
    ),
    "llama3_8b": _LLAMA3_8B,  # meta-llama/Meta-Llama-3-8B
    "llama31_8b": dataclasses.replace(  # meta-llama/Llama-3.1-8B
        _LLAMA3_8B, max_seq_len=131072, rope_scaling=_LLAMA31_ROPE
    ),
    "llama3_70b": dataclasses.replace(  # meta-llama/Meta-Llama-3-70B
        _LLAMA3_8B, num_layers=80, num_heads=64, embed_dim=8192, mlp_dim=28672
    ),
    "llama32_1b": dataclasses.replace(  # meta-llama/Llama-3.2-1B
        _LLAMA32_3B, num_layers=16, num_heads=32, head_dim=64, embed_dim=2048
    ),
    "llama32_3b": _LLAMA32_3B,  # meta-llama/Llama-3.2-3B
    "mistral_7b": _MISTRAL_7B,  # mistralai/Mistral-7B-v0.1, whose sliding window has 4096 tokens
    "mistral_7b_v02": dataclasses.replace(  # mistralai/Mistral-7B-Instruct-v0.2, without window
        _MISTRAL_7B, max_seq_len=32768, rope_theta=1000000.0
    ),
    "qwen2_05b": dataclasses.replace(  # Qwen/Qwen2-0.5B, Qwen/Qwen2.5-0.5B
        _QWEN2_7B,
        vocab_size=151936,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        embed_dim=896,
        mlp_dim=4864,
        tie_embeddings=True,
    ),
    "qwen2_7b": _QWEN2_7B,  # Qwen/Qwen2-7B, Qwen/Qwen2.5-7B
    "digits": LlamaConfig(  # the demo: two CPU cores, one minute
        vocab_size=452,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        embed_dim=128,
        mlp_dim=256,
        max_seq_len=512,
        vocab_multiple=64,
        scan_unroll=4,
    ),
}

_CLIP_L = VisionConfig(
    family="clip",
    image_size=224,
    patch_size=14,
    num_layers=24,
    num_heads=16,
    embed_dim=1024,
    mlp_dim=4096,
    norm_eps=1e-5,
    feature_layer=-2,
    remat="full",
)

VISION = {
    "siglip_so400m_14_384": VisionConfig(  # google/siglip-so400m-patch14-384
        image_size=384,
        patch_size=14,
        num_layers=27,
        num_heads=16,
        embed_dim=1152,
        mlp_dim=4304,
        remat="full",
    ),
    "clip_vit_l_14": _CLIP_L,  # openai/clip-vit-large-patch14; LLaVA reads the layer before last
    "clip_vit_l_14_336": dataclasses.replace(_CLIP_L, image_size=336),
    "digits": VisionConfig(
        image_size=32,
        patch_size=4,
        num_layers=3,
        num_heads=4,
        embed_dim=96,
        mlp_dim=192,
        scan_unroll=3,
    ),
}


# Of pixels, by family of tower: (mean, standard deviation) of RGB values in [0, 1].
# Source: `preprocessor_config.json` of the checkpoints above.
PIXEL_STATISTICS = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def llm_preset(name: str, **changes: object) -> LlamaConfig:
    """Returns the decoder `name` with some fields changed."""
    return dataclasses.replace(_lookup(LLM, name, "decoder"), **changes)


def vision_preset(name: str, **changes: object) -> VisionConfig:
    """Returns the vision tower `name` with some fields changed."""
    return dataclasses.replace(_lookup(VISION, name, "vision tower"), **changes)


def _lookup(table: dict, name: str, kind: str):
    if name not in table:
        near = nearest(name, table)
        guess = f" did you mean {near[0]}?" if near else ""
        raise UserError(f"no {kind} preset {name!r};{guess} presets: {', '.join(table)}")
    return table[name]
