"""A whole checkpoint in memory <-> our whole parameter tree: for small models and tests.

Real models go tensor by tensor instead (`importing.py`, `exporting.py`), through the same tables.
"""

from collections.abc import Mapping

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.layouts import OwnName, is_dead, to_own, to_theirs
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.table import read_tensors, write_tensors
from metamorph_jax.typing import PyTree


def from_hf(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, layout: str = "native"
) -> PyTree:
    """Returns the parameters of all parts.

    Args:
        tensors: of a checkpoint, by name, the vision tower included.
        config: of the model; without `contrastive_dim`. Parameters come in its `param_dtype`.
        layout: of the names, see `layouts.py`.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of `config`; what is wrong
            with all parts is reported together.
    """
    parts, params, problems = split_parts(tensors, layout), {}, []
    for name, table in part_tables(config).items():
        try:
            params[name] = read_tensors(table, parts.get(name, {}), name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return _cast(params, np.dtype(config.param_dtype))


def to_hf(params: PyTree, config: ModelConfig, layout: str = "native") -> dict[str, np.ndarray]:
    """Returns the tensors of all parts by name, vocabulary padding removed.

    Args:
        params: of the whole model.
        config: of the model.
        layout: of the names, see `layouts.py`.
    """
    return {
        to_theirs(layout, OwnName(part, name)): value
        for part, table in part_tables(config).items()
        for name, value in write_tensors(table, params[part]).items()
    }


def split_parts(
    tensors: Mapping[str, np.ndarray], layout: str = "native"
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the tensors by part of our tree, with each part's own names.

    Unused leftovers are dropped; a name of no known part goes to the language model, whose table
    reports it.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        if not is_dead(name):
            own = to_own(layout, name) or OwnName("language_model", name)
            parts.setdefault(own.part, {})[own.name] = value
    return parts


def _cast(tree: PyTree, dtype: np.dtype) -> PyTree:
    if isinstance(tree, dict):
        return {name: _cast(branch, dtype) for name, branch in tree.items()}
    return tree.astype(dtype, copy=False)
