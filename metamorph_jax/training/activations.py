"""Activations that one device holds, by arithmetic: what blocks keep, and moments of a step.

What each moment holds was read from programs that are compiled for TPUs, in their order of
execution. The moments never coincide, so `memory.py` counts the largest.
"""

import numpy as np

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.models.attend import SCAN_ABOVE
from metamorph_jax.ops.attention import causal_block_size
from metamorph_jax.ops.attention_kernels import FUSED_BACKWARD_MAX_LEN, block_size
from metamorph_jax.ops.cross_entropy import TOKENS_PER_BLOCK

_FLOAT32_BYTES = 4


def _tokens(rows: float, stage: StageConfig, context: int) -> float:
    """Returns the positions that a device computes at once; those of a row are split."""
    return rows * stage.data.max_seq_len / context


def kept_bytes(
    model: ModelConfig, rows: int, stage: StageConfig, tensor: int, context: int
) -> float:
    """Returns what all blocks keep on the device for the backward pass."""
    llm, item = model.llm, np.dtype(model.dtype).itemsize
    embed, heads, keys = (
        llm.embed_dim,
        llm.num_heads * llm.head_dim,
        llm.num_kv_heads * llm.head_dim,
    )
    # Of each query a softmax's logarithm besides, if attention's results are kept from a kernel.
    sums = _FLOAT32_BYTES * llm.num_heads / tensor if _is_kernel(llm) else 0
    widths = {
        "full": embed * item,
        "offload": 0,
        "attention": (embed + heads / tensor) * item + sums,
        # Queries, keys, values, attention's output projection, gate, up and down.
        "dots": (3 * embed + (heads + 2 * keys + 2 * llm.mlp_dim) / tensor) * item,
        # Likewise, and what attention and the activation make of them.
        "none": (4 * embed + (2 * heads + 2 * keys + 3 * llm.mlp_dim) / tensor) * item + sums,
    }
    return llm.num_layers * _tokens(rows, stage, context) * widths[llm.remat]


def block_bytes(
    model: ModelConfig, rows: int, stage: StageConfig, tensor: int, context: int, is_trained: bool
) -> float:
    """Returns what one block holds while gradients pass through it.

    The stream and its gradient; queries, attention's result and its gradient; keys, values and
    their gradients, of the whole row on all devices that share it. A weight's gradient is there
    as the two activations that it is a product of or as the product, whole and not yet scattered:
    the MLP's three as whichever is larger. One more weight is on its way, since an exchange
    does not work in place.
    """
    llm, item = model.llm, np.dtype(model.dtype).itemsize
    tokens, positions = _tokens(rows, stage, context), rows * stage.data.max_seq_len
    embed, heads, keys = (
        llm.embed_dim,
        llm.num_heads * llm.head_dim,
        llm.num_kv_heads * llm.head_dim,
    )
    stream = tokens * (2 * embed + 3 * heads / tensor) + positions * 4 * keys / tensor
    projections = embed * (2 * heads + 2 * keys) / tensor
    matrix = embed * llm.mlp_dim / tensor
    mlp = 3 * max(tokens * llm.mlp_dim / tensor, matrix if is_trained else 0)
    scores = rows * _num_scores(llm, stage.data.max_seq_len, context) * _FLOAT32_BYTES
    partial = tokens * heads * _num_partial(llm, stage.data.max_seq_len) * item
    return (stream + projections + matrix + mlp) * item + (scores + partial) / tensor


def _is_kernel(llm: LlamaConfig) -> bool:
    return llm.attention in ("splash", "flash")


def _num_partial(llm: LlamaConfig, length: int) -> int:
    """Returns how many partial gradients of the queries Splash holds: one for a block of keys."""
    if llm.attention != "splash" or length > FUSED_BACKWARD_MAX_LEN:
        return 0
    return length // block_size(length)


def _num_scores(llm: LlamaConfig, length: int, context: int) -> float:
    """Returns how many scores of a row exist at once on the devices that share it."""
    if _is_kernel(llm):
        return 0  # in the kernel's own memory
    if llm.attention == "xla":
        return 2 * llm.num_heads * length**2 / context
    if context > 1 or length > SCAN_ABOVE:
        return 0  # one pair of blocks at a time
    return 2 * llm.num_heads * length * (length + causal_block_size(length)) / 2


def around_bytes(model: ModelConfig, rows: int, stage: StageConfig, context: int) -> float:
    """Returns what waits outside the blocks while gradients pass through them.

    The stream before and after the final norm, of a vision head input, inner layer and gradient,
    of the connector two layers for each visual token.
    """
    width = (2 + 3 * (model.vision_head != "none")) * model.llm.embed_dim
    visual = rows * stage.data.max_images * model.visual_tokens.num_tokens * 2 * model.llm.embed_dim
    item = np.dtype(model.dtype).itemsize
    return (_tokens(rows, stage, context) * width + visual) * item


def loss_bytes(
    model: ModelConfig, rows: int, stage: StageConfig, tensor: int, context: int
) -> float:
    """Returns what the cross-entropy holds on its way back, if all positions are supervised.

    It is a block of tokens and of the vocabulary at a time: logits in float32 and their gradient,
    that part of the output table, and its gradient in float32 and as it is scattered; besides,
    the sorted hidden states and their gradient in float32.
    """
    llm, item = model.llm, np.dtype(model.dtype).itemsize
    tokens = _tokens(rows, stage, context)
    chunk = min(stage.loss.vocab_chunk_size, llm.padded_vocab_size // tensor)
    logits = min(tokens, TOKENS_PER_BLOCK) * (_FLOAT32_BYTES + item)
    hidden = tokens * llm.embed_dim * (_FLOAT32_BYTES + item)
    return chunk * (logits + llm.embed_dim * (2 * item + _FLOAT32_BYTES)) + hidden


def tower_bytes(model: ModelConfig, rows: float, stage: StageConfig, tensor: int) -> float:
    """Returns what the tower holds: one block at a time when frozen, all of them when trained."""
    vision, item = model.vision, np.dtype(model.dtype).itemsize
    images = rows if stage.objective == "contrastive" else rows * stage.data.max_images
    tokens = images * vision.num_tokens
    scores = images * vision.num_heads * vision.num_tokens**2 * _FLOAT32_BYTES / tensor
    trained = any(prefix.strip("/") in ("", "vision_tower") for prefix in stage.trained)
    if not trained:  # attention's moment: the stream, queries, keys, values
        return tokens * 4 * vision.embed_dim * item + scores
    block = tokens * (8 * vision.embed_dim + 2 * vision.mlp_dim / tensor) * item + 2 * scores
    if vision.remat != "none":
        return block + tokens * vision.embed_dim * item * vision.num_used_layers
    return block * vision.num_used_layers
