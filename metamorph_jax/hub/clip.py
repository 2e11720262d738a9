"""Hugging Face CLIP vision models <-> our `vision_tower` parameters.

Unlike SigLIP: a CLS token, a norm before the blocks (their spelling: "pre_layrnorm"), and no bias
on the patches. The blocks are those of `siglip.py`.
"""

from collections.abc import Mapping

import numpy as np

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.hub import siglip
from metamorph_jax.hub.table import Row, Table, read_tensors, write_tensors
from metamorph_jax.typing import PyTree

_ROWS = (
    Row("class_embed/embedding", "embeddings.class_embedding", "E -> E"),
    siglip.PATCH_KERNEL,
    siglip.POSITIONS,
    Row("pre_norm/scale", "pre_layrnorm.weight", "E -> E"),
    Row("pre_norm/bias", "pre_layrnorm.bias", "E -> E"),
    *siglip.BLOCK_ROWS,
)


def table(config: VisionConfig) -> Table:
    """Returns the mapping table of a CLIP tower."""
    return siglip.tower_table(config, _ROWS, config.grid_size**2 + 1)


def from_hf(tensors: Mapping[str, np.ndarray], config: VisionConfig) -> PyTree:
    """Returns the `vision_tower` parameters.

    Args:
        tensors: of `CLIPVisionModel` or `CLIPModel`, by name.
        config: of the tower, `family="clip"`.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of `config`.
    """
    return read_tensors(table(config), siglip.strip_prefix(tensors), "CLIP checkpoint")


def to_hf(params: PyTree, config: VisionConfig) -> dict[str, np.ndarray]:
    """Returns the tensors that the tower uses, with the prefix "vision_model.".

    Args:
        params: of `vision_tower`.
        config: of the tower.
    """
    tensors = write_tensors(table(config), params)
    return {f"vision_model.{name}": value for name, value in tensors.items()}
