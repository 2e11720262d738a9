"""LLaVA's export: a folder that stock `transformers` loads, every file but tensors and tokenizer.

`LlavaForConditionalGeneration` has a connector of two layers, reads every token of its tower and
predicts none. It has blocks and a norm behind the layer that is read; where a checkpoint does not
keep those (`unused.safetensors`), the exported tower ends at that layer.

**Source:** transformers `models/llava/`, `docs/source/en/model_doc/llava.md`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

from metamorph_jax.config.schema_model import ModelConfig, VisionConfig
from metamorph_jax.data.templates import AnyTemplate, Template, stop_ids
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub.chat_template import to_jinja
from metamorph_jax.hub.configs import llm_config_json, vision_config_json
from metamorph_jax.hub.generation_config import generation_json
from metamorph_jax.hub.image_processors import image_processor_json
from metamorph_jax.hub.metamorph_config import reserved_token

IMAGE_TOKEN = "<image>"
_VOCAB_MULTIPLE = 64  # that Hugging Face's own conversions pad a grown vocabulary to


class ImageToken(NamedTuple):
    """The token that stands for one visual token in the ids.

    Attributes:
        token: as the tokenizer spells it.
        id: of it.
        is_new: the tokenizer has to learn it.
        vocab_size: rows that the exported tables need.
    """

    token: str
    id: int
    is_new: bool
    vocab_size: int


def choose_image_token(config: ModelConfig, tokenizer: Tokenizer) -> ImageToken:
    """Returns the placeholder: the tokenizer's "<image>", a reserved token, or a new "<image>".

    A vocabulary without room for it grows by rows that are the mean of the others, as new tokens
    begin; no text and no answer contains them.
    """
    rows, names = config.llm.vocab_size, tokenizer.names
    known = IMAGE_TOKEN if IMAGE_TOKEN in names else reserved_token(tokenizer)
    if known is not None:
        return ImageToken(known, names[known], False, rows)
    if tokenizer.vocab_size >= rows:
        rows = -(-(tokenizer.vocab_size + 1) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    return ImageToken(IMAGE_TOKEN, tokenizer.vocab_size, True, rows)


def check_exportable(config: ModelConfig) -> None:
    """Raises a UserError that lists what `LlavaForConditionalGeneration` does not have."""
    problems, tokens = [], config.visual_tokens
    if config.num_connector_layers != 2:
        problems.append(f"model.connector is {config.connector!r}, it has 'mlp2x_gelu' only")
    if tokens.reduction != "none":
        problems.append(f"model.visual_tokens.reduction is {tokens.reduction!r}, not 'none'")
    if tokens.normalize or tokens.softmax_temperature is not None:
        problems.append("model.visual_tokens are normalised or softmaxed")
    if config.image_newline:
        problems.append("model.image_newline is set, which is LLaVA-NeXT's")
    if problems:
        raise UserError("this model cannot be exported as LLaVA: " + "; ".join(problems))


def exported_tower(config: VisionConfig, has_unused: bool) -> VisionConfig:
    """Returns the tower as it is written: whole, or ending at the layer that is read."""
    if has_unused:
        return config
    return dataclasses.replace(config, num_layers=config.num_used_layers, feature_layer=-1)


def llava_files(
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: AnyTemplate,
    image_geometry: Literal["square", "pad"],
    dtype: str,
    has_unused: bool,
) -> dict[str, bytes | dict[str, Any]]:
    """Returns the files of an exported folder by name; a dict is to be written as JSON.

    Args:
        config: of the model.
        tokenizer: of the model.
        template: how turns were written in training.
        image_geometry: how images were made square in training.
        dtype: of the stored tensors.
        has_unused: the tower's unused tensors are written, too.

    Raises:
        UserError: LLaVA's class or a chat template cannot be what was trained.
    """
    check_exportable(config)
    placeholder, vision = choose_image_token(config, tokenizer), config.vision
    special, stop = tokenizer.special, stop_ids(template, tokenizer)
    keeps_all = vision.family == "siglip" or vision.cls_policy == "cls_patch"
    strategy = "full" if keeps_all else "default"
    text = llm_config_json(config.llm) | {"vocab_size": placeholder.vocab_size}
    ids = {"bos_token_id": special.begin_of_text, "eos_token_id": list(stop)}
    ids["pad_token_id"] = special.pad
    tower = exported_tower(vision, has_unused)
    images = image_processor_json(vision, image_geometry)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(vision.family == "clip"),
        "image_token": placeholder.token,
    }
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "dtype": dtype,
            "text_config": text | ids,
            "vision_config": vision_config_json(tower) | {"num_hidden_layers": tower.num_layers},
            "image_token_index": placeholder.id,
            "image_seq_length": config.visual_tokens.num_tokens,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_layer": tower.feature_layer,
            "vision_feature_select_strategy": strategy,
            "tie_word_embeddings": config.llm.tie_embeddings,
        },
        "generation_config.json": ids | generation_json(tokenizer, stop, placeholder.vocab_size),
        "processor_config.json": processor | {"image_processor": images},
        "preprocessor_config.json": images | {"processor_class": "LlavaProcessor"},
        "chat_template.jinja": _jinja(template, tokenizer, placeholder.token).encode(),
    }


def _jinja(template: AnyTemplate, tokenizer: Tokenizer, image_token: str) -> str:
    if isinstance(template, Template):
        start, end = "", ""
        if template.image_tokens:
            names = {id_: name for name, id_ in tokenizer.names.items()}
            ids = tokenizer.image_token_ids(f"template {template.name}")
            start, end = (names[id_] for id_ in ids)
        return to_jinja(template, tokenizer, f"{start}{image_token}{end}")
    return tokenizer.chat_template or ""
