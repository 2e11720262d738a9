"""Our parameters -> the tensors of a Hugging Face folder, each made when it is written.

The tables are those of importing. What stands beside the tensors (config.json, processor, classes)
is the matter of `export_llava.py` and `export_metamorph.py`.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import einops
import numpy as np

from metamorph_jax.checkpoints.arrays import BlockReader, Index
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.copying import contiguous
from metamorph_jax.hub.layouts import OwnName, to_theirs
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.table import LAYER, Row, Table, row_sizes
from metamorph_jax.hub.tensor_writer import TensorToWrite
from metamorph_jax.hub.vocabulary import RunningMean

OnCast = Callable[[str, np.ndarray], None]


class StoredReader(BlockReader, Protocol):
    """A parameter of a checkpoint; parts of shape `block` are read fastest."""

    block: tuple[int, ...]


def tensors_to_write(
    config: ModelConfig,
    params: Mapping[str, StoredReader],
    layout: str,
    dtype: np.dtype | None,
    vocab_size: int | None = None,
    on_cast: OnCast = lambda name, part: None,
) -> dict[str, TensorToWrite]:
    """Returns all tensors of a model by Hugging Face name, vocabulary padding removed.

    Args:
        config: of the model.
        params: by path in our tree.
        layout: of the names, see `layouts.py`.
        dtype: of the tensors; None: each as it is stored.
        vocab_size: rows of the tables, if there are to be more than the model has; the new ones are
            the mean of the others.
        on_cast: is told the name and content of each part whose dtype was changed.

    Raises:
        UserError: the layout has no name for a part, or a parameter is missing.
    """
    tensors: dict[str, TensorToWrite] = {}
    for part, table in part_tables(config).items():
        for row in table.rows:
            param = params.get(f"{part}/{row.ours}")
            if param is None:
                raise UserError(f"the checkpoint lacks the parameter {part}/{row.ours}")
            for layer, own in enumerate(table.names_of(row)):
                name = to_theirs(layout, OwnName(part, own))
                if name is None:
                    raise UserError(f"layout {layout!r} has no name for {own} of the {part}")
                tensors[name] = _tensor(
                    table, row, param, layer, dtype, vocab_size, functools.partial(on_cast, name)
                )
    return tensors


def tensor_shapes(config: ModelConfig, part: str, layout: str) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a part by its name in a layout."""
    table = part_tables(config)[part]
    return {
        to_theirs(layout, OwnName(part, own)): _shape(
            row.layout.split("->")[0].strip(), row_sizes(table, row)
        )
        for row in table.rows
        for own in table.names_of(row)
    }


def _tensor(
    table: Table,
    row: Row,
    param: StoredReader,
    layer: int,
    dtype: np.dtype | None,
    vocab_size: int | None,
    on_cast: Callable[[np.ndarray], None],
) -> TensorToWrite:
    """Returns one tensor of theirs, not yet read."""
    theirs, ours = (side.strip() for side in row.layout.split("->"))
    sizes, letters = row_sizes(table, row), ours.split()
    shape, dtype = _shape(theirs, sizes), np.dtype(dtype or param.dtype)
    num_new = max(0, vocab_size - sizes["V"]) if vocab_size and "V" in sizes else 0
    index = tuple(slice(0, sizes[letter]) for letter in letters)  # without the padding of V
    if LAYER in row.theirs:
        index = (slice(layer, layer + 1), *index)

    def create_part(part: Index) -> np.ndarray:
        stored = param.read(part)
        stored = stored[0] if LAYER in row.theirs else stored
        # Merging axes of a transposed view would copy it, slowly.
        split = " ".join(letter for group in _groups(theirs) for letter in group)
        tensor = contiguous(einops.rearrange(stored, f"{ours} -> {split}"))
        del stored  # a cast makes another copy
        if tensor.dtype == dtype:
            return tensor
        tensor = cast(tensor, dtype)
        on_cast(tensor)
        return tensor

    def create_rows() -> Iterator[np.ndarray]:
        mean = RunningMean()
        axis = letters.index("V")
        for part in _pieces(index, axis, param.block[axis]):
            rows = create_part(part)
            if num_new:
                mean.add(rows)
            yield rows
        if num_new:
            yield np.repeat(mean.row(dtype)[None], num_new, axis=0)

    def create() -> np.ndarray | Iterator[np.ndarray]:
        # Tables are the largest tensors: they are made in the pieces in which they are stored.
        return create_rows() if "V" in letters else create_part(index).reshape(shape)

    return TensorToWrite((shape[0] + num_new, *shape[1:]), dtype, create)


def _pieces(index: Index, axis: int, step: int) -> Iterator[Index]:
    """Yields an index cut into steps along one axis."""
    for start in range(0, index[axis].stop, step):
        part = slice(start, min(start + step, index[axis].stop))
        yield (*index[:axis], part, *index[axis + 1 :])


def cast(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the tensor in another dtype; what is too large for it becomes infinity."""
    with np.errstate(over="ignore"):
        return tensor.astype(dtype, copy=False)


@functools.cache
def _groups(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Returns the letters of each dimension of a pattern such as "(N H) D"."""
    return tuple(
        tuple((group or letter).split())
        for group, letter in re.findall(r"\(([^)]*)\)|(\S+)", pattern)
    )


def _shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape that a pattern of letters has."""
    return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(pattern))
