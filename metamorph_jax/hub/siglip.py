"""Hugging Face SigLIP vision models <-> our `vision_tower` parameters.

What comes after the feature layer (later blocks, post-layernorm, pooling head) and the text tower
are known and ignored. `clip.py` shares the rows of the blocks.
"""

import re
from collections.abc import Mapping

import numpy as np

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.hub.table import Row, Table, read_tensors, write_tensors
from metamorph_jax.typing import PyTree

_BLOCK = "encoder.layers.{layer}."


def _linear(ours: str, theirs: str, kernel: str, bias: str) -> tuple[Row, Row]:
    return (
        Row(f"blocks/{ours}/kernel", f"{_BLOCK}{theirs}.weight", kernel),
        Row(f"blocks/{ours}/bias", f"{_BLOCK}{theirs}.bias", bias),
    )


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
    return (
        Row(f"blocks/{ours}/scale", f"{_BLOCK}{theirs}.weight", "E -> E"),
        Row(f"blocks/{ours}/bias", f"{_BLOCK}{theirs}.bias", "E -> E"),
    )


BLOCK_ROWS = (
    *_norm("attention_norm", "layer_norm1"),
    *_linear("attention/query", "self_attn.q_proj", "(N H) E -> E N H", "(N H) -> N H"),
    *_linear("attention/key", "self_attn.k_proj", "(N H) E -> E N H", "(N H) -> N H"),
    *_linear("attention/value", "self_attn.v_proj", "(N H) E -> E N H", "(N H) -> N H"),
    *_linear("attention/out", "self_attn.out_proj", "E (N H) -> N H E", "E -> E"),
    *_norm("mlp_norm", "layer_norm2"),
    *_linear("mlp/up", "mlp.fc1", "F E -> E F", "F -> F"),
    *_linear("mlp/down", "mlp.fc2", "E F -> F E", "E -> E"),
)
PATCH_KERNEL = Row("patch_embed/kernel", "embeddings.patch_embedding.weight", "E c p q -> p q c E")
POSITIONS = Row("position_embed/embedding", "embeddings.position_embedding.weight", "M E -> M E")
_ROWS = (
    PATCH_KERNEL,
    Row("patch_embed/bias", "embeddings.patch_embedding.bias", "E -> E"),
    POSITIONS,
    *BLOCK_ROWS,
)


def tower_table(config: VisionConfig, rows: tuple[Row, ...], num_positions: int) -> Table:
    """Returns the mapping table of a tower of either family.

    Args:
        config: of the tower.
        rows: of the family, blocks included.
        num_positions: rows of the position table.
    """
    used = config.num_used_layers
    unused_blocks = (rf"encoder\.layers\.{i}\..*" for i in range(used, config.num_layers))
    return Table(
        rows=rows if used else tuple(row for row in rows if row not in BLOCK_ROWS),
        sizes={
            "E": config.embed_dim,
            "F": config.mlp_dim,
            "N": config.num_heads,
            "H": config.embed_dim // config.num_heads,
            "M": num_positions,
            "c": 3,
            "p": config.patch_size,
            "q": config.patch_size,
        },
        num_layers=used,
        ignored=(
            r"post_layernorm\..*",
            r"head\..*",
            r"embeddings\.position_ids",
            r"text_model\..*",
            r"(logit_scale|logit_bias|visual_projection\.weight|text_projection\.weight)",
            *unused_blocks,
        ),
    )


def strip_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors with "vision_model." removed from names, which some releases write."""
    return {re.sub(r"^vision_model\.", "", name): value for name, value in tensors.items()}


def table(config: VisionConfig) -> Table:
    """Returns the mapping table of a SigLIP tower."""
    return tower_table(config, _ROWS, config.grid_size**2)


def from_hf(tensors: Mapping[str, np.ndarray], config: VisionConfig) -> PyTree:
    """Returns the `vision_tower` parameters.

    Args:
        tensors: of `SiglipVisionModel` or `SiglipModel`, by name.
        config: of the tower, `family="siglip"`.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of `config`.
    """
    return read_tensors(table(config), strip_prefix(tensors), "SigLIP checkpoint")


def to_hf(params: PyTree, config: VisionConfig) -> dict[str, np.ndarray]:
    """Returns the tensors that the tower uses, with the prefix "vision_model.".

    Args:
        params: of `vision_tower`.
        config: of the tower.
    """
    tensors = write_tensors(table(config), params)
    return {f"vision_model.{name}": value for name, value in tensors.items()}
