"""`config.json` of MetaMorph's export.

The class that reads it is in `remote/configuration_metamorph.py`; `configs.py` reads it back.
"""

import re
from typing import Any, NamedTuple

from metamorph_jax.config.schema_model import (
    ModelConfig,
)
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import llm_config_json, vision_config_json

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
    special = tokenizer.special
    start, end = tokenizer.image_token_ids("the export of MetaMorph")
    return {
        "architectures": [_MODEL.rpartition(".")[2]],
        "model_type": "metamorph",
        "auto_map": AUTO_MAP,
        "dtype": dtype,
        "text_config": llm_config_json(config.llm)
        | {
            "bos_token_id": special.begin_of_text,
            "eos_token_id": special.end_of_text,
            "pad_token_id": special.pad,
        },
        # As many blocks as were published, although only those that are used are made.
        "vision_config": vision_config_json(config.vision)
        | {"num_hidden_layers": config.vision.num_layers},
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
    if config.llm.qkv_bias:
        problems.append("model.llm.qkv_bias is set")
    if tokenizer.vocab_size > config.llm.vocab_size:
        problems.append(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.llm.vocab_size is "
            f"{config.llm.vocab_size}"
        )
    if problems:
        raise UserError("this model cannot be exported as MetaMorph: " + "; ".join(problems))
