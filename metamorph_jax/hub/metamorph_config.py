"""`config.json` of MetaMorph's export <-> our model configuration.

The class that reads it is in `remote/configuration_metamorph.py`. Rotary parameters are written in
the old spelling, which every release of transformers reads, and read in both.
"""

import dataclasses
import re
from typing import Any, NamedTuple

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.schema_model import (
    LlamaConfig,
    ModelConfig,
    RopeScaling,
    VisionConfig,
    VisualTokensConfig,
)
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError

_MODEL = "modeling_metamorph.MetaMorphForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_metamorph.MetaMorphConfig",
    # Without a head: what vLLM wraps is the base model.
    "AutoModel": "modeling_metamorph.MetaMorphModel",
    "AutoModelForImageTextToText": _MODEL,
    "AutoModelForCausalLM": _MODEL,
    "AutoProcessor": "processing_metamorph.MetaMorphProcessor",
}
_RESERVED = re.compile(r".*reserved.*token.*")
_IMAGE_TAG = "<image>"
_LLAMA3_ROPE = {  # theirs: ours
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


class Placeholder(NamedTuple):
    """What stands where a visual token goes.

    Attributes:
        token: in prompts, once for each picture.
        id: in ids, once for each visual token.
    """

    token: str
    id: int


def choose_placeholder(tokenizer: Tokenizer, vocab_size: int) -> Placeholder:
    """Returns the placeholder of a tokenizer: its first reserved special token.

    Without one, the id is `vocab_size`, one past the vocabulary: no text has it, no answer can
    contain it, and the model never looks it up. The vocabulary is not grown, since its tables are
    what was trained.

    Args:
        tokenizer: of the model.
        vocab_size: of the model.
    """
    if reserved := reserved_token(tokenizer):
        return Placeholder(reserved, tokenizer.names[reserved])
    return Placeholder(_IMAGE_TAG, tokenizer.names.get(_IMAGE_TAG, vocab_size))


def reserved_token(tokenizer: Tokenizer) -> str | None:
    """Returns the first special token that a tokenizer keeps free for others' use."""
    names = tokenizer.names
    return min((n for n in names if _RESERVED.match(n)), key=names.__getitem__, default=None)


def metamorph_config_json(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Returns the fields of `config.json`.

    Args:
        config: of the model.
        tokenizer: of the model; all ids are its own.
        dtype: of the stored tensors.

    Raises:
        UserError: The exported classes have no such model, or the tokenizer lacks a token.
    """
    _check(config, tokenizer)
    start, end = tokenizer.image_token_ids("the export of MetaMorph")
    return {
        "architectures": [_MODEL.rpartition(".")[2]],
        "model_type": "metamorph",
        "auto_map": AUTO_MAP,
        "dtype": dtype,
        "text_config": _text_fields(config.llm, tokenizer),
        "vision_config": _vision_fields(config.vision),
        "image_token_id": choose_placeholder(tokenizer, config.llm.vocab_size).id,
        "image_start_token_id": start,
        "image_end_token_id": end,
        "num_image_tokens": config.visual_tokens.num_tokens,
        "image_token_reduction": config.visual_tokens.reduction,
        "normalize_vision": config.visual_tokens.normalize,
        "vision_feature_layer": config.vision.feature_layer,
        "projector_type": config.connector,
        "projector_hidden_act": "gelu",
        "vision_head_type": config.vision_head,
        "tie_word_embeddings": config.llm.tie_embeddings,
    }


def _check(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises a UserError that lists what the exported classes do not have."""
    tokens, problems = config.visual_tokens, []
    if config.vision.family != "siglip":
        problems.append(f"model.vision.family is {config.vision.family!r}, not 'siglip'")
    if tokens.reduction == "concat_interpolation":
        problems.append("model.visual_tokens.reduction is 'concat_interpolation'")
    if tokens.softmax_temperature is not None:
        problems.append("model.visual_tokens.softmax_temperature is set")
    if round(tokens.num_tokens**0.5) ** 2 != tokens.num_tokens:
        problems.append(f"model.visual_tokens.num_tokens={tokens.num_tokens} is no square")
    if config.image_newline:
        problems.append("model.image_newline is set")
    if tokenizer.vocab_size > config.llm.vocab_size:
        problems.append(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.llm.vocab_size is "
            f"{config.llm.vocab_size}"
        )
    if problems:
        raise UserError("this model cannot be exported as MetaMorph: " + "; ".join(problems))


def _text_fields(llm: LlamaConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    special, rope = tokenizer.special, llm.rope_scaling
    scaling: dict[str, Any] | None = None
    if rope.kind != "none":
        scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling |= {theirs: getattr(rope, ours) for theirs, ours in _LLAMA3_ROPE.items()}
    return {
        "model_type": "llama",
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.embed_dim,
        "intermediate_size": llm.mlp_dim,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "max_position_embeddings": llm.max_seq_len,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": llm.tie_embeddings,
        "bos_token_id": special.begin_of_text,
        "eos_token_id": special.end_of_text,
        "pad_token_id": special.pad,
    }


def _vision_fields(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.mlp_dim,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": False,
    }


def metamorph_model_config(fields: dict[str, Any]) -> ModelConfig:
    """Returns the configuration of a folder's `config.json`, written by us or by transformers.

    Args:
        fields: of `config.json`.

    Raises:
        UserError: It is of another model, or a field is missing or not what ours can be.
    """
    if fields.get("model_type") != "metamorph":
        raise UserError(
            f"config.json has model_type {fields.get('model_type')!r}; expected 'metamorph'"
        )
    try:
        config = _model_config(fields)
    except KeyError as error:
        raise UserError(f"config.json lacks {error.args[0]!r}, which MetaMorph needs") from None
    # Types and choices are checked as those of a recipe are.
    return build_dataclass(ModelConfig, dataclasses.asdict(config), "config.json, read as model")


def _model_config(fields: dict[str, Any]) -> ModelConfig:
    dtype = fields.get("dtype") or "float32"
    return ModelConfig(
        llm=_llama_config(fields["text_config"], bool(fields["tie_word_embeddings"])),
        vision=_vision_config(fields["vision_config"], fields["vision_feature_layer"]),
        visual_tokens=VisualTokensConfig(
            reduction=fields["image_token_reduction"],
            num_tokens=fields["num_image_tokens"],
            normalize=fields["normalize_vision"],
        ),
        connector=fields["projector_type"],
        vision_head=fields["vision_head_type"],
        dtype=dtype,
        param_dtype=dtype,
    )


def _llama_config(text: dict[str, Any], tied: bool) -> LlamaConfig:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"config.json: rope_type {kind!r} is none of 'default', 'linear', 'llama3'")
    scaling = RopeScaling()
    if kind == "linear":
        scaling = RopeScaling(kind=kind, factor=rope["factor"])
    if kind == "llama3":
        own = {ours: rope[theirs] for theirs, ours in _LLAMA3_ROPE.items()}
        scaling = RopeScaling(kind=kind, factor=rope["factor"], **own)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    return LlamaConfig(
        vocab_size=text["vocab_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or width // heads,
        embed_dim=width,
        mlp_dim=text["intermediate_size"],
        max_seq_len=text["max_position_embeddings"],
        rope_theta=rope.get("rope_theta") or text.get("rope_theta") or 10000.0,
        rope_scaling=scaling,
        norm_eps=text["rms_norm_eps"],
        tie_embeddings=tied,
    )


def _vision_config(vision: dict[str, Any], feature_layer: int) -> VisionConfig:
    return VisionConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        embed_dim=vision["hidden_size"],
        mlp_dim=vision["intermediate_size"],
        norm_eps=vision["layer_norm_eps"],
        feature_layer=feature_layer,
    )
