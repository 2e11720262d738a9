"""Memory that one device needs for a stage, by arithmetic.

State and gradients are exact (they follow from shapes); activations are an estimate from what the
remat policy keeps. `plan` (compiling for the real pod) will measure instead.
"""

import jax
import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.ops.attention import causal_block_size
from metamorph_jax.optim.selection import Selection
from metamorph_jax.trees import flatten
from metamorph_jax.typing import PyTree

_FLOAT32_BYTES = 4


def estimate_memory(
    model: ModelConfig,
    stage: StageConfig,
    params: PyTree,
    selection: Selection,
    mesh: dict[str, int],
) -> dict[str, float]:
    """Returns bytes per device by what they hold, and their sum.

    Args:
        model: the model.
        stage: the stage.
        params: abstract parameters.
        selection: the trained part.
        mesh: devices per axis; parameters and optimiser state are taken to divide evenly.
    """
    shards = mesh["fsdp"] * mesh["tensor"]
    all_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in flatten(params).values())
    trained = sum(leaf.size for leaf in jax.eval_shape(selection.split, params).values())
    rows = stage.global_batch_size // (mesh["data"] * mesh["fsdp"] * stage.grad_accum_steps)
    activations = 0.0
    if not stage.data.features:
        activations += _tower_bytes(model, rows, stage, mesh["tensor"])
    if stage.objective == "vpit":
        activations += _decoder_bytes(model, rows, stage, mesh["tensor"])
    copies = 2 if stage.grad_accum_steps > 1 else 1  # the sum, and what is added to it
    parts = {
        "parameters": all_bytes / shards,
        "optimiser (two float32 moments)": 2 * trained * _FLOAT32_BYTES / shards,
        "gradients (float32)": copies * trained * _FLOAT32_BYTES / shards,
        "activations (estimate)": activations,
    }
    return parts | {"all": sum(parts.values())}


def _decoder_bytes(model: ModelConfig, rows: int, stage: StageConfig, tensor: int) -> float:
    """Returns what the decoder's backward pass keeps, for `rows` rows.

    Scores are those of one layer: the backward pass computes them again. Heads and MLP are split
    over `tensor`; the residual stream, and the vocabulary blocks with the whole output table that
    they are cut from, are not.
    """
    llm, item = model.llm, np.dtype(model.dtype).itemsize
    tokens = rows * stage.data.max_seq_len
    width = llm.head_dim * (llm.num_heads + 2 * llm.num_kv_heads)
    block = tokens * (4 * llm.embed_dim + (width + 3 * llm.mlp_dim) / tensor) * item
    length = stage.data.max_seq_len
    seen = length * (length + causal_block_size(length)) / 2  # of the square, in blocks
    scores = 2 * rows * llm.num_heads * seen * _FLOAT32_BYTES / tensor
    logits = 3 * tokens * min(stage.loss.vocab_chunk_size, llm.padded_vocab_size) * _FLOAT32_BYTES
    table = llm.embed_dim * llm.padded_vocab_size * _FLOAT32_BYTES if tensor > 1 else 0
    kept = tokens * llm.embed_dim * item * llm.num_layers
    if llm.remat == "none":
        return llm.num_layers * block + scores + logits + table
    return kept + block + scores + logits + table


def _tower_bytes(model: ModelConfig, rows: int, stage: StageConfig, tensor: int) -> float:
    """Returns what the tower keeps: one block at a time when frozen, all of them when trained."""
    vision, item = model.vision, np.dtype(model.dtype).itemsize
    images = rows if stage.objective == "contrastive" else rows * stage.data.max_images
    tokens = images * vision.num_tokens
    block = tokens * (8 * vision.embed_dim + 2 * vision.mlp_dim / tensor) * item
    block += 2 * images * vision.num_heads * vision.num_tokens**2 * _FLOAT32_BYTES / tensor
    trained = any(prefix.strip("/") in ("", "vision_tower") for prefix in stage.trained)
    if not trained or vision.remat != "none":
        return block + tokens * vision.embed_dim * item * (vision.num_used_layers if trained else 1)
    return block * vision.num_used_layers
