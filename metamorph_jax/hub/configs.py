"""`config.json` <-> our configurations: the door. Needs neither jax nor torch.

Decoders are read in `decoder_configs.py`, towers in `tower_configs.py`; here are whole models:
LLaVA as `transformers` has it, LLaVA and MetaMorph as their own training code saves them, and
MetaMorph as we export it. Tensor names are the affair of `layouts.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from metamorph_jax.config.presets import LLM, VISION
from metamorph_jax.config.schema_model import (
    LlamaConfig,
    ModelConfig,
    VisionConfig,
    VisualTokensConfig,
)
from metamorph_jax.errors import UserError
from metamorph_jax.hub import decoder_configs
from metamorph_jax.hub.config_values import Values, checked
from metamorph_jax.hub.decoder_configs import llm_config_json as llm_config_json
from metamorph_jax.hub.decoder_configs import read_decoder, refuse_quantized
from metamorph_jax.hub.decoder_configs import read_llm_config as read_llm_config
from metamorph_jax.hub.tower_configs import read_tower
from metamorph_jax.hub.tower_configs import read_vision_config as read_vision_config
from metamorph_jax.hub.tower_configs import vision_config_json as vision_config_json

# What training code calls its models, and what kind of decoder they have.
_NATIVE = {
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "metamorph_llama": "llama",
}
# The first LLaVA calls itself "llava", as transformers does, and so does LLaVA-OneVision.
_NATIVE_CLASSES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
_CONNECTOR = re.compile(r"linear|mlp[1-9]\d*x_gelu")
_SOFTMAX_TEMPERATURE = 0.07  # Source: MetaMorph, which has no key for it
_HEADS = {"mlp": "mlp", "mlp2x_gelu": "mlp2x_gelu"}
_REDUCTIONS = {name: name for name in ("none", "interpolation", "concat_interpolation")}
_ANYRES = "supported: 'square', 'pad'; models that read several views of an image are not"


def read_model_config(
    config: Mapping[str, Any],
    tower: Mapping[str, Any] | None = None,
    where: str = "config.json",
    tower_where: str = "config.json of the tower",
) -> ModelConfig:
    """Returns the whole model that a `config.json` describes; dtypes stay those of `ModelConfig`.

    Args:
        config: LLaVA's in the layout of transformers (`llava`, Interleave too), LLaVA's or
            MetaMorph's as their training code saves them, or MetaMorph's as we export it.
        tower: `config.json` of the vision tower, for files of training code, which only name it.
        where: the file, for messages.
        tower_where: the tower's file, for messages.

    Raises:
        UserError: a value is missing, wrong, or of something that we do not have.
    """
    values = Values(config, where)
    refuse_quantized(values)
    kind = values.get("model_type")
    is_native = isinstance(kind, str) and kind in _NATIVE
    if kind == "metamorph":
        return _read_export(values)
    if kind == "llava" and values.get("text_config") is not None:
        return _read_llava(values)
    if is_native or (kind == "llava" and "mm_vision_tower" in values):
        return _read_native(values, tower, tower_where)
    known = ", ".join(["llava", *_NATIVE, "metamorph"])
    raise values.wrong("model_type", kind, f"supported for whole models: {known}")


def find_preset(config: LlamaConfig | VisionConfig) -> str | None:
    """Returns the name of the preset that computes the same; None: there is none.

    Vocabulary, longest sequence and what is read of a tower may differ; so may everything that
    changes only how fast it computes.
    """
    table = LLM if isinstance(config, LlamaConfig) else VISION
    ours = arithmetic(config)
    return next((name for name, preset in table.items() if arithmetic(preset) == ours), None)


def arithmetic(config: LlamaConfig | VisionConfig) -> dict[str, Any]:
    """Returns the fields that decide what a part computes, by name.

    Vocabulary, longest sequence, what is read of a tower and what changes only speed are left out.
    """
    free = ("vocab_size", "vocab_multiple", "max_seq_len", "remat", "scan_unroll")
    free += ("feature_layer", "cls_policy", "activation")
    fields = {name: value for name, value in vars(config).items() if name not in free}
    return fields | {"activation": getattr(config, "mlp_activation", config.activation)}


def _read_llava(values: Values) -> ModelConfig:
    """Reads LLaVA in the layout of transformers."""
    strategies = {"default": "patch", "full": "cls_patch"}
    policy = values.choice("vision_feature_select_strategy", strategies, "default")
    values.refuse("projector_hidden_act", ("gelu",), "supported: 'gelu'")
    values.refuse("multimodal_projector_bias", (True,), "supported: true")
    vision = read_tower(values.section("vision_config"), -1, policy, nested=True)
    vision = _at_layer(vision, values, "vision_feature_layer")
    if vision.family == "siglip" and policy == "patch":
        why = "it drops the first token, which is a patch in SigLIP; supported there: 'full'"
        raise values.wrong("vision_feature_select_strategy", "default", why)
    tokens = VisualTokensConfig(reduction="none", num_tokens=vision.num_tokens, normalize=False)
    return ModelConfig(
        llm=_read_text(values), vision=vision, visual_tokens=tokens, vision_head="none"
    )


def _read_export(values: Values) -> ModelConfig:
    """Reads MetaMorph as we export it; the keys are those of our `MetaMorphConfig`."""
    values.refuse("projector_hidden_act", ("gelu",), "supported: 'gelu'")
    vision = read_tower(values.section("vision_config"), -1, nested=True)
    vision = _at_layer(vision, values, "vision_feature_layer", -1)
    heads = _HEADS | {"linear": "linear"}
    model = ModelConfig(
        llm=_read_text(values),
        vision=vision,
        visual_tokens=_read_reduction(values, vision),
        connector=_read_connector(values, "projector_type", "mlp2x_gelu"),
        vision_head=values.choice("vision_head_type", heads, "mlp"),
    )
    return checked(model, values.where)


def _read_native(values: Values, tower: Mapping[str, Any] | None, tower_where: str) -> ModelConfig:
    """Reads LLaVA or MetaMorph as their training code saves them."""
    family = _native_family(values)
    llm = read_decoder(values.with_defaults(decoder_configs.FAMILIES[family]), family)
    values.refuse("mm_resampler_type", (), "resamplers are not supported")
    values.refuse("image_aspect_ratio", ("square", "pad"), _ANYRES)
    if tower is None:
        name = values.get("mm_vision_tower")
        raise UserError(
            f"{values.where}: mm_vision_tower is {name!r}, and says nothing about its sizes; name "
            "the folder of that tower, too (--vision=DIR)"
        )
    is_metamorph = values.get("model_type") == "metamorph_llama"
    policies = {"patch": "patch", "cls_patch": "cls_patch"}
    policy = values.choice("mm_vision_select_feature", policies, "patch")
    vision = read_tower(Values(tower, tower_where), -1, policy)
    vision = _at_layer(vision, values, "mm_vision_select_layer")
    if vision.family == "siglip" and not is_metamorph and vision.feature_layer != -2:
        why = "LLaVA-NeXT reads the layer before last of SigLIP whatever stands here; write -2"
        raise values.wrong("mm_vision_select_layer", vision.feature_layer, why)
    values.refuse("mm_hidden_size", (vision.embed_dim,), f"{tower_where} has {vision.embed_dim}")
    tokens = VisualTokensConfig(reduction="none", num_tokens=vision.num_tokens, normalize=False)
    model = ModelConfig(
        llm=llm,
        vision=vision,
        visual_tokens=_read_reduction(values, vision) if is_metamorph else tokens,
        connector=_read_connector(values, "mm_projector_type", "linear"),
        vision_head=_read_head(values) if is_metamorph else "none",
    )
    return checked(model, values.where)


def _native_family(values: Values) -> str:
    """Returns the kind of decoder of a model that training code saved."""
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind in _NATIVE:
        return _NATIVE[kind]
    name = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    if not isinstance(name, str) or name not in _NATIVE_CLASSES:
        known = ", ".join(_NATIVE_CLASSES)
        raise values.wrong("architectures", classes, f"supported: one of {known}")
    return _NATIVE_CLASSES[name]


def _read_text(values: Values) -> LlamaConfig:
    """Returns the decoder under "text_config"; the head is tied if either level says so."""
    text = values.section("text_config")
    # Source: HF transformers `configuration_llava.py`, for files that name no kind.
    family = text.choice("model_type", {name: name for name in decoder_configs.FAMILIES}, "llama")
    text = text.with_defaults(decoder_configs.NESTED[family])
    return read_decoder(text, family, tied=values.flag("tie_word_embeddings", False))


def _read_reduction(values: Values, vision: VisionConfig) -> VisualTokensConfig:
    """Returns what MetaMorph makes of the tower's tokens.

    **Source:** MetaMorph `model/multimodal_encoder/siglip_encoder.py`: as many tokens as the tower
    has are left as they are.
    """
    reduction = values.choice("image_token_reduction", _REDUCTIONS, "interpolation")
    num_tokens = values.size("num_image_tokens")
    if num_tokens == vision.num_tokens:
        reduction = "none"
    softmax = values.flag("apply_softmax", False)
    tokens = VisualTokensConfig(
        reduction=reduction,
        num_tokens=num_tokens,
        normalize=values.flag("normalize_vision"),
        softmax_temperature=_SOFTMAX_TEMPERATURE if softmax else None,
    )
    return checked(tokens, values.where)


def _read_head(values: Values) -> str:
    """Returns the vision head of MetaMorph as its training code names it."""
    if values.get("vision_head_type") == "linear":
        why = "there, it is as wide as the decoder and predicts no visual tokens; supported: "
        raise values.wrong("vision_head_type", "linear", why + ", ".join(map(repr, _HEADS)))
    return values.choice("vision_head_type", _HEADS)


def _read_connector(values: Values, key: str, default: str) -> str:
    name = values.get(key)
    name = default if name is None else name
    if not isinstance(name, str) or not _CONNECTOR.fullmatch(name):
        raise values.wrong(key, name, "supported: 'linear', 'mlpNx_gelu' with N >= 1")
    return name


def _at_layer(vision: VisionConfig, values: Values, key: str, default: int = -2) -> VisionConfig:
    """Returns the tower, read at the index into hidden states that stands under a key."""
    layer = values.get(key)
    layer = default if layer is None else layer
    last = vision.num_layers
    if type(layer) is not int or not -last - 1 <= layer <= last:
        raise values.wrong(key, layer, f"supported: one layer, from {-last - 1} to {last}")
    return dataclasses.replace(vision, feature_layer=layer)
