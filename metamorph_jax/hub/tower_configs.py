"""A vision tower's `config.json` <-> `VisionConfig`: SigLIP, SigLIP 2 of fixed resolution, CLIP.

Weights are in `siglip.py` and `clip.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.hub.config_values import Values, checked
from metamorph_jax.hub.decoder_configs import refuse_quantized

_MOST_LAYERS, _MOST_PIXELS = 1024, 2**14
# SigLIP 2 of fixed resolution calls itself "siglip", with or without its text side.
_FAMILIES = {"siglip_vision_model": "siglip", "siglip": "siglip"}
_FAMILIES |= {"clip_vision_model": "clip", "clip": "clip"}
_FLEXIBLE = ("siglip2", "siglip2_vision_model")

# What a file may leave out. Source: HF transformers, `configuration_*.py`; a test compares them.
FAMILIES: dict[str, dict[str, Any]] = {
    "siglip": {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "clip": {"num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
# Only a section within a larger file leaves these out; alone, a file without them is damaged.
_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_SIZES |= {"num_attention_heads": 12, "image_size": 224}
NESTED: dict[str, dict[str, Any]] = {
    "siglip": FAMILIES["siglip"] | _SIZES | {"patch_size": 16},
    "clip": FAMILIES["clip"] | _SIZES | {"patch_size": 32},
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "gelu": "gelu"}


def read_vision_config(
    config: Mapping[str, Any],
    feature_layer: int,
    where: str = "config.json",
    cls_policy: Literal["patch", "cls_patch"] = "patch",
) -> VisionConfig:
    """Returns the tower that a `config.json` describes.

    Args:
        config: of a vision model, or of the whole model with its text side.
        feature_layer: index into the hidden states, see `VisionConfig`.
        where: the file, for messages.
        cls_policy: what becomes of CLIP's class token.

    Raises:
        UserError: a value is missing, wrong, or of something that we do not have.
    """
    return read_tower(Values(config, where), feature_layer, cls_policy)


def read_tower(
    values: Values, feature_layer: int, cls_policy: str = "patch", nested: bool = False
) -> VisionConfig:
    """Returns the tower that a section describes; see `read_vision_config`.

    Args:
        values: of the section.
        feature_layer: index into the hidden states.
        cls_policy: what becomes of CLIP's class token.
        nested: the section is a part of a larger file, and may leave out usual sizes.
    """
    refuse_quantized(values)
    if values.get("model_type") in _FLEXIBLE:
        why = "its towers take images of any shape (NaFlex); supported: SigLIP 2 of fixed"
        raise values.wrong(
            "model_type", values.get("model_type"), f"{why} resolution, which calls itself 'siglip'"
        )
    family = values.choice("model_type", _FAMILIES)
    if values.get("vision_config") is not None and not nested:
        _check_copies(values)
        inner = values.section("vision_config")
        if "model_type" not in inner:
            inner = inner.replaced("model_type", f"{family}_vision_model")
        return read_tower(inner, feature_layer, cls_policy, nested=True)
    values = values.with_defaults((NESTED if nested else FAMILIES)[family])
    values.refuse("num_channels", (3,), "supported: 3, pictures in RGB")
    activation = values.choice("hidden_act", _ACTIVATIONS)
    vision = VisionConfig(
        family=family,
        image_size=_side(values, "image_size"),
        patch_size=_side(values, "patch_size"),
        num_layers=values.size("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=values.size("num_attention_heads"),
        embed_dim=values.size("hidden_size"),
        mlp_dim=values.size("intermediate_size"),
        norm_eps=values.number("layer_norm_eps"),
        activation=None if activation == _usual_activation(family) else activation,
        feature_layer=feature_layer,
        cls_policy=cls_policy if family == "clip" else "patch",
    )
    return checked(vision, values.where)


def vision_config_json(vision: VisionConfig) -> dict[str, Any]:
    """Returns the `config.json` of a tower that ends where ours does, as JSON values.

    It has the blocks up to the feature layer, since we have no others, so its features are the
    hidden states of layer -1. A post-layernorm follows there, which ours has not either; SigLIP's
    pooling head does not.
    """
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[vision.mlp_activation]
    names = {"siglip": "SiglipVisionModel", "clip": "CLIPVisionModel"}
    values = {
        "architectures": [names[vision.family]],
        "model_type": f"{vision.family}_vision_model",
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.mlp_dim,
        "num_hidden_layers": vision.num_used_layers,
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": activation,
        "layer_norm_eps": vision.norm_eps,
    }
    return values | ({"vision_use_head": False} if vision.family == "siglip" else {})


def _usual_activation(family: str) -> str:
    return _ACTIVATIONS[FAMILIES[family]["hidden_act"]]


def _side(values: Values, key: str) -> int:
    """Returns the side of a square that may be written as one number or as two equal ones."""
    value = values.get(key)
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise values.wrong(key, value, "supported: squares")
        values = values.replaced(key, value[0])
    return values.size(key, most=_MOST_PIXELS)


def _check_copies(values: Values) -> None:
    """Raises a UserError if `vision_config_dict`, which old files of CLIP have, says otherwise."""
    copy, inner = values.get("vision_config_dict"), values.section("vision_config")
    if copy is None:
        return
    for key, value in values.section("vision_config_dict").raw().items():
        if inner.get(key) is not None and inner.get(key) != value:
            raise values.wrong(
                "vision_config_dict", copy, f"{key} differs from that of vision_config; remove one"
            )
