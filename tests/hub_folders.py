"""Hugging Face folders of tiny models, written with our tables: tensors and config.json."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.hub import metamorph
from metamorph_jax.hub.configs import llm_config_json, vision_config_json
from metamorph_jax.hub.importing import NanWatch, find_sources
from metamorph_jax.hub.layouts import OwnName, to_theirs
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder
from metamorph_jax.trees import unflatten
from metamorph_jax.typing import PyTree


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], **options: Any) -> None:
    """Writes arrays as safetensors files; `options` are those of `write_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lazy = {n: TensorToWrite(v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()}
    write_folder(folder, lazy, **options)


def write_model(
    folder: Path,
    model: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    layout: str = "native",
    **options: Any,
) -> Path:
    """Writes a whole model, its tensors named as `layout` has it; returns the folder."""
    write_tensors(folder, tensors, **options)
    (folder / "config.json").write_text(json.dumps(config_json(model, layout)))
    return folder


def write_parts(folder: Path, model: ModelConfig, params: PyTree) -> tuple[Path, Path]:
    """Writes a decoder and a tower into folders of their own; returns both."""
    parts = metamorph.split_parts(metamorph.to_hf(params, model))
    configs = {
        "decoder": ("language_model", llm_config_json(model.llm)),
        "tower": ("vision_tower", vision_config_json(model.vision)),
    }
    for layout, (part, config) in configs.items():
        tensors = {
            to_theirs(layout, OwnName(part, name)): value for name, value in parts[part].items()
        }
        write_tensors(folder / layout, tensors)
        (folder / layout / "config.json").write_text(json.dumps(config))
    return folder / "decoder", folder / "tower"


def import_params(tensors: Mapping[str, np.ndarray], model: ModelConfig) -> PyTree:
    """Returns the parameters that tensors named as in training become, by way of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model, tensors)
        sources = find_sources(model, [folder], NanWatch())
        whole = {
            name: source.read(tuple(slice(0, size) for size in source.shape))
            for name, source in sources.items()
        }
    return unflatten(whole)


def config_json(model: ModelConfig, layout: str) -> dict[str, Any]:
    """Returns the config.json of a MetaMorph: as its training code writes it, or as we do."""
    tokens = model.visual_tokens
    own = {
        "image_token_reduction": tokens.reduction,
        "num_image_tokens": tokens.num_tokens,
        "normalize_vision": tokens.normalize,
        "vision_head_type": model.vision_head,
    }
    if layout == "composite":
        return own | {
            "model_type": "metamorph",
            "text_config": llm_config_json(model.llm),
            "vision_config": vision_config_json(model.vision),
            "vision_feature_layer": model.vision.feature_layer,
            "projector_type": model.connector,
            "tie_word_embeddings": model.llm.tie_embeddings,
        }
    return (
        own
        | llm_config_json(model.llm)
        | {
            "model_type": "metamorph_llama",
            "mm_vision_tower": "siglip/CLIP-ViT-SO400M-14-384",
            "mm_hidden_size": model.vision.embed_dim,
            "mm_projector_type": model.connector,
            "mm_vision_select_layer": model.vision.feature_layer,
        }
    )
