"""A model small enough for any test, and batches of packed rows for it."""

import numpy as np

from metamorph_jax.config.schema_model import (
    LlamaConfig,
    ModelConfig,
    VisionConfig,
    VisualTokensConfig,
)
from metamorph_jax.config.schema_run import DataConfig, LossConfig, OptimizerConfig, StageConfig


def tiny_model(**changes) -> ModelConfig:
    """Returns a two-layer model of width 16 with 4 visual tokens of width 8 per image."""
    llm = LlamaConfig(
        vocab_size=40,
        vocab_multiple=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        embed_dim=16,
        mlp_dim=32,
    )
    vision = VisionConfig(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=16
    )
    values = {"llm": llm, "vision": vision, "visual_tokens": VisualTokensConfig(num_tokens=4)}
    return ModelConfig(**(values | changes))


def tiny_stage(**changes) -> StageConfig:
    """Returns a VPiT stage for `tiny_batch`."""
    values = {
        "name": "vpit",
        "data": DataConfig(sources=(), max_seq_len=24, max_images=2),
        "trained": ("connector", "language_model", "vision_head"),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.0),
        "loss": LossConfig(vocab_chunk_size=16),
        "total_steps": 20,
        "global_batch_size": 8,
    }
    return StageConfig(**(values | changes))


def tiny_batch(seed: int, num_rows: int = 8, with_answer_images: bool = True) -> dict:
    """Returns rows of two segments: 10 positions with a prompt image, 11 with an answer image.

    The number of supervised tokens differs from row to row, so that means over rows and means over
    tokens differ.
    """
    rng = np.random.default_rng(seed)
    shape = (num_rows, 24)
    batch = {
        "tokens": rng.integers(0, 40, shape, dtype=np.int32),
        "targets": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "visual_index": np.full(shape, -1, np.int32),
        "visual_target": np.full(shape, -1, np.int32),
        "images": rng.integers(0, 256, (num_rows, 2, 16, 16, 3), dtype=np.uint8),
    }
    batch["segment_ids"][:, :10], batch["segment_ids"][:, 10:21] = 1, 2
    batch["positions"][:, :10], batch["positions"][:, 10:21] = np.arange(10), np.arange(11)
    batch["visual_index"][:, 2:6] = np.arange(4)
    batch["visual_index"][:, 13:17] = np.arange(4, 8)
    if with_answer_images:
        batch["visual_target"][:, 12:16] = np.arange(4, 8)
    for row in range(num_rows):
        batch["loss_mask"][row, 9 - row % 3 : 9] = True
        batch["loss_mask"][row, 16:20] = True
    batch["targets"][:, :-1] = batch["tokens"][:, 1:]
    batch["targets"][~batch["loss_mask"]] = 0
    batch["tokens"][batch["visual_index"] >= 0] = 0
    return batch
