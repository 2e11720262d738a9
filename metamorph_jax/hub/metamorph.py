"""Checkpoints of the MetaMorph composition <-> our whole parameter tree.

The parts are told apart by the beginning of a name. Released checkpoints write "model." before some
of them, and the tower twice; `_part_of` knows these spellings. The contrastive head of a tower of
one's own has no counterpart there and is not written.
"""

import re
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub import clip, llama, siglip
from metamorph_jax.hub.table import Row, Table, read_tensors, write_tensors
from metamorph_jax.typing import PyTree

_TOWERS = {"siglip": siglip, "clip": clip}
_VISION_HEAD_LAYERS = {"linear": 1, "mlp": 2, "mlp2x_gelu": 3}
_TOWER_PREFIX = "vision_tower.vision_model."

# Leftovers that the released model stores and never uses; the newline, unless the model has one.
_IGNORED = re.compile(r"(model\.)?(vision_proj|temperature_in|codebook)(\..*)?")
_NEWLINE = "image_newline"


def _mlp_table(part: str, widths: tuple[int, ...]) -> Table:
    """Returns the table of Linear layers at the even places of a torch Sequential."""
    rows, sizes = [], {}
    single = len(widths) == 2  # then the reference has a bare Linear, without a number
    for i, width in enumerate(widths):
        sizes[f"d{i}"] = width
    for i in range(len(widths) - 1):
        theirs = part if single else f"{part}.{2 * i}"
        layout = f"d{i + 1} d{i} -> d{i} d{i + 1}"
        rows.append(Row(f"layers_{i}/kernel", f"{theirs}.weight", layout))
        rows.append(Row(f"layers_{i}/bias", f"{theirs}.bias", f"d{i + 1} -> d{i + 1}"))
    return Table(rows=rows, sizes=sizes, num_layers=0)


def connector_table(config: ModelConfig) -> Table:
    """Returns the table of `mm_projector`."""
    width = config.llm.embed_dim
    return _mlp_table("mm_projector", (config.visual_dim,) + (width,) * config.num_connector_layers)


def vision_head_table(config: ModelConfig) -> Table:
    """Returns the table of `vision_head`."""
    num_layers = _VISION_HEAD_LAYERS[config.vision_head]
    widths = (config.llm.embed_dim,) * num_layers + (config.visual_dim,)
    return _mlp_table("vision_head", widths)


def newline_table(config: ModelConfig) -> Table:
    """Returns the table of `image_newline`, of models that have it."""
    rows = [Row("embedding", _NEWLINE, "D -> D")]
    return Table(rows=rows, sizes={"D": config.llm.embed_dim}, num_layers=0)


def from_hf(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> PyTree:
    """Returns the parameters of all parts.

    Args:
        tensors: of a MetaMorph checkpoint, by name, the vision tower included.
        config: of the model; without `contrastive_dim`. Parameters come in its `param_dtype`.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of `config`; what is wrong
            with all parts is reported together.
    """
    tower = _TOWERS[config.vision.family]
    readers = {
        "vision_tower": lambda part: tower.from_hf(part, config.vision),
        "connector": lambda part: read_tensors(connector_table(config), part, "mm_projector"),
        "language_model": lambda part: llama.from_hf(part, config.llm),
        "vision_head": lambda part: read_tensors(vision_head_table(config), part, "vision_head"),
    }
    if config.image_newline:
        table = newline_table(config)
        readers[_NEWLINE] = lambda part: read_tensors(table, part, _NEWLINE)
    parts, params, problems = split_parts(tensors), {}, []
    for name, read in readers.items():
        try:
            params[name] = _cast(read(parts[name]), np.dtype(config.param_dtype))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return params


def to_hf(params: PyTree, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the tensors of all parts by name, vocabulary padding removed.

    Args:
        params: of the whole model.
        config: of the model.
    """
    tower = _TOWERS[config.vision.family].to_hf(params["vision_tower"], config.vision)
    newline = {}
    if config.image_newline:
        newline = write_tensors(newline_table(config), params["image_newline"])
    return {
        **newline,
        **llama.to_hf(params["language_model"], config.llm),
        **write_tensors(connector_table(config), params["connector"]),
        **write_tensors(vision_head_table(config), params["vision_head"]),
        **{f"vision_tower.{name}": value for name, value in tower.items()},
    }


def split_parts(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the tensors by part of our tree, with each part's own names.

    Unused leftovers are dropped; a name of no known part goes to the language model, whose table
    reports it.
    """
    parts: dict[str, dict[str, np.ndarray]] = {
        "vision_tower": {},
        "connector": {},
        "language_model": {},
        "vision_head": {},
        _NEWLINE: {},
    }
    for name, value in tensors.items():
        if not _IGNORED.fullmatch(name):
            part, own_name = _part_of(name)
            parts[part][own_name] = value
    return parts


def _cast(tree: PyTree, dtype: np.dtype) -> PyTree:
    if isinstance(tree, dict):
        return {name: _cast(branch, dtype) for name, branch in tree.items()}
    return tree.astype(dtype, copy=False)


def _part_of(name: str) -> tuple[str, str]:
    bare = re.sub(r"^model\.(?=mm_projector|vision_head|vision_tower|image_newline)", "", name)
    bare = re.sub(r"^(vision_tower\.)+", "vision_tower.", bare)
    if bare.startswith("vision_tower."):
        return "vision_tower", bare.removeprefix(_TOWER_PREFIX).removeprefix("vision_tower.")
    if bare.startswith("mm_projector."):
        return "connector", bare
    if bare.startswith("vision_head."):
        return "vision_head", bare
    if bare == _NEWLINE:
        return _NEWLINE, bare
    return "language_model", name
