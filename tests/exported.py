"""A tiny MetaMorph as an exported folder, and the same model in JAX."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.data.templates import TEMPLATES, AnyTemplate
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.hub import auto
from metamorph_jax.hub.export_metamorph import metamorph_files
from metamorph_jax.hub.metamorph import to_hf
from metamorph_jax.typing import PyTree

auto.register()  # else transformers asks whether to trust the folder's own code
torch.set_num_threads(1)  # models this small only wait for other threads


def write_export(
    folder: Path,
    config: ModelConfig,
    params: PyTree,
    tokenizer: Tokenizer,
    template: str | AnyTemplate = "metamorph_llama3",
    geometry: str = "square",
) -> dict[str, np.ndarray]:
    """Writes a folder as an export does, in float32; returns its tensors by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(tokenizer.path).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = TEMPLATES[template] if isinstance(template, str) else template
    files = metamorph_files(config, tokenizer, template, geometry, dtype="float32")
    for name, content in files.items():
        if isinstance(content, dict):
            content = json.dumps(content, indent=2).encode()
        (folder / name).write_bytes(content)
    tensors = to_hf(params, config, "composite")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors
