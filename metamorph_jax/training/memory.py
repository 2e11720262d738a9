"""Memory that one device needs for a stage, by arithmetic.

State and gradients are exact (they follow from shapes); activations are an estimate from what the
remat policy keeps. `plan` (compiling for the real pod) will measure instead.
"""

import jax
import numpy as np
import optax

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.models.attend import SCAN_ABOVE
from metamorph_jax.ops.attention import causal_block_size
from metamorph_jax.optim.optimizer import make_optimizer
from metamorph_jax.optim.selection import Selection
from metamorph_jax.training.state import stored_params
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
    tensor, context = mesh["tensor"], mesh.get("context", 1)
    shards = mesh["fsdp"] * context * tensor
    trained = jax.eval_shape(selection.split, params)
    rows = stage.global_batch_size // (mesh["data"] * mesh["fsdp"] * stage.grad_accum_steps)
    activations = 0.0
    if not stage.data.features:
        activations += _tower_bytes(model, rows / context, stage, tensor)
    if stage.objective == "vpit":
        activations += _decoder_bytes(model, rows, stage, tensor, context)
    copies = 2 if stage.grad_accum_steps > 1 else 1  # the sum, and what is added to it
    parts = {
        "parameters": _size(stored_params(params, selection, stage.frozen_dtype)) / shards,
        "optimiser": _size(jax.eval_shape(_optimizer(stage, trained).init, trained)) / shards,
        "gradients": copies * _size(trained) / shards,
        "activations (estimate)": activations,
    }
    return parts | {"all": sum(parts.values())}


def _optimizer(stage: StageConfig, trained: dict) -> optax.GradientTransformation:
    return make_optimizer(stage.optimizer, stage.total_steps, stage.global_batch_size, [*trained])


def _size(tree: PyTree) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in flatten(tree).values())


def _decoder_bytes(
    model: ModelConfig, rows: int, stage: StageConfig, tensor: int, context: int
) -> float:
    """Returns what the decoder's backward pass keeps, for `rows` rows.

    Scores are those of one layer: the backward pass computes them again. Positions are split over
    `context`, but for the keys and values that each device gathers. Heads and MLP are split over
    `tensor`; the residual stream, and the vocabulary blocks with the whole output table that they
    are cut from, are not.
    """
    llm, item = model.llm, np.dtype(model.dtype).itemsize
    length = stage.data.max_seq_len
    tokens = rows * length / context
    width = llm.head_dim * (llm.num_heads + 2 * llm.num_kv_heads)
    block = tokens * (4 * llm.embed_dim + (width + 3 * llm.mlp_dim) / tensor) * item
    gathered = rows * length * 2 * llm.num_kv_heads * llm.head_dim * item / tensor
    scores = rows * _num_scores(llm, length, context) * _FLOAT32_BYTES / tensor
    logits = 3 * tokens * min(stage.loss.vocab_chunk_size, llm.padded_vocab_size) * _FLOAT32_BYTES
    table = llm.embed_dim * llm.padded_vocab_size * _FLOAT32_BYTES if tensor > 1 else 0
    passing = scores + logits + table + (gathered if context > 1 else 0)
    if llm.remat == "none":
        return llm.num_layers * block + passing
    return llm.num_layers * tokens * _kept_width(llm, tensor) * item + block + passing


def _kept_width(llm: LlamaConfig, tensor: int) -> float:
    """Returns how many numbers of a token a block keeps on the device for the backward pass."""
    heads = llm.num_heads * llm.head_dim / tensor
    widths = {
        "full": llm.embed_dim,
        "offload": 0,
        "attention": llm.embed_dim + heads,
        # Queries, keys, values, attention's output projection, gate, up and down.
        "dots": 3 * llm.embed_dim
        + heads
        + (2 * llm.num_kv_heads * llm.head_dim + 2 * llm.mlp_dim) / tensor,
    }
    return widths[llm.remat]


def _num_scores(llm: LlamaConfig, length: int, context: int) -> float:
    """Returns how many scores of a row exist at once on the devices that share it."""
    if llm.attention in ("splash", "flash"):
        return 0  # in the kernel's own memory
    if llm.attention == "xla":
        return 2 * llm.num_heads * length**2 / context
    if context > 1 or length > SCAN_ABOVE:
        return 0  # one pair of blocks at a time
    return 2 * llm.num_heads * length * (length + causal_block_size(length)) / 2


def _tower_bytes(model: ModelConfig, rows: float, stage: StageConfig, tensor: int) -> float:
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
