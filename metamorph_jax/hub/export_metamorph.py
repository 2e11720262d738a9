"""MetaMorph's export: every file of the folder but its tensors and its tokenizer.

The folder loads as remote code, and without it where this package is installed (`auto.py`). The
classes that read these files are in `remote/`.
"""

import json
from pathlib import Path
from typing import Any, Literal

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.data.fast_tokenizer import FastTokenizer
from metamorph_jax.data.templates import (
    AnyTemplate,
    Template,
    check_template,
    stop_ids,
)
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub.chat_template import to_jinja
from metamorph_jax.hub.generation_config import generation_json
from metamorph_jax.hub.image_processors import image_processor_json
from metamorph_jax.hub.metamorph_config import (
    AUTO_MAP,
    Placeholder,
    choose_placeholder,
    metamorph_config_json,
)

_REMOTE = Path(__file__).parent / "remote"
REMOTE_FILES = tuple(sorted(path.name for path in _REMOTE.glob("*_metamorph.py")))
_PROCESSOR = {
    "processor_class": "MetaMorphProcessor",
    "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
}


def metamorph_files(
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: AnyTemplate,
    image_geometry: Literal["square", "pad"] = "square",
    dtype: str = "bfloat16",
) -> dict[str, bytes | dict[str, Any]]:
    """Returns the files of an exported folder by name; a dict is to be written as JSON.

    Args:
        config: of the model.
        tokenizer: of the model; the files of its folder belong beside these, which win.
        template: how turns were written in training.
        image_geometry: how images were made square in training.
        dtype: of the stored tensors.

    Raises:
        UserError: The exported classes, or their chat template, cannot be what was trained.
    """
    if not template.image_tokens:
        raise UserError(
            f"template {template.name} has no tokens around images, which the export of MetaMorph "
            "needs; export a model that was trained with 'metamorph_llama3', 'llama3' or 'jinja'"
        )
    if isinstance(template, Template) and template.image_place != "as_written":
        raise UserError(
            f"template {template.name} moves images within a question, which the exported "
            "processor does not; use 'metamorph_llama3', 'llama3' or 'jinja' for such a model"
        )
    if not isinstance(tokenizer, FastTokenizer):
        raise UserError(
            f"{tokenizer.path}: the export of MetaMorph needs a tokenizer that is read from "
            "tokenizer.json; transformers gives other ids than were trained to this one's"
        )
    fields = metamorph_config_json(config, tokenizer, dtype)
    check_template(template, tokenizer)
    placeholder = choose_placeholder(tokenizer, config.llm.vocab_size)
    return {
        "config.json": fields,
        "generation_config.json": generation_json(
            tokenizer, stop_ids(template, tokenizer), config.llm.vocab_size
        ),
        "processor_config.json": _processor(config, tokenizer, placeholder, image_geometry),
        "preprocessor_config.json": image_processor_json(config.vision, "square") | _PROCESSOR,
        "chat_template.jinja": _jinja(template, tokenizer, placeholder).encode(),
        **{name: (_REMOTE / name).read_bytes() for name in REMOTE_FILES},
    }


def _jinja(template: AnyTemplate, tokenizer: Tokenizer, placeholder: Placeholder) -> str:
    """Returns the chat template; that of the tokenizer's folder was checked before."""
    if isinstance(template, Template):
        return to_jinja(template, tokenizer, placeholder.token)
    return tokenizer.chat_template or ""


def _processor(
    config: ModelConfig, tokenizer: FastTokenizer, placeholder: Placeholder, image_geometry: str
) -> dict[str, Any]:
    """Returns `processor_config.json`."""
    start, end = tokenizer.image_token_ids("the export of MetaMorph")
    names = {id_: name for name, id_ in tokenizer.names.items()}
    return {
        **_PROCESSOR,
        "image_token": placeholder.token,
        "image_token_id": placeholder.id,
        "boi_token": names[start],
        "eoi_token": names[end],
        "num_image_tokens": config.visual_tokens.num_tokens,
        "image_geometry": image_geometry,
        "control_tokens": _unmarked(tokenizer),
        "image_processor": image_processor_json(config.vision, "square"),
    }


def _unmarked(tokenizer: FastTokenizer) -> list[str]:
    """Returns the control tokens that the folder does not mark as special."""
    added = json.loads(tokenizer.definition).get("added_tokens") or []
    return sorted({*tokenizer.names} - {token["content"] for token in added if token["special"]})
