"""One of our parameters, read in parts from the tensors of a Hugging Face folder.

A `ParamSource` knows which tensors it is made of and reads only those, and of those only what a
slice needs; so the same object fills the shards of a device mesh (`training/initial.py`) and the
blocks of a checkpoint on disk (`importing.py`). What is wrong with names or shapes is found before
anything is read.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import einops
import ml_dtypes
import numpy as np

from metamorph_jax.errors import UserError
from metamorph_jax.hub.copying import contiguous
from metamorph_jax.hub.table import LAYER, Row, Table, check_names, row_sizes
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.vocabulary import mean_row

_MOST_NEW_ROWS = 1024  # of a vocabulary; more is another model

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class ParamSource:
    """A parameter, not yet read.

    Attributes:
        shape: of ours: layers stacked, vocabulary padded.
        dtype: it is given out in.
        tensors: names of theirs, one per layer of a stack.
        layout: einops pattern from theirs to ours, without the layer.
        sizes: of the letters of `layout`; V is the number of rows that are stored.
        vocab_size: rows that count; those beyond the stored ones are their mean, then come zeros.
        folder: that holds the tensors.
        on_read: is told the name and content of each part that is read.
        new_ids: rows of the vocabulary that are new, whatever is stored there: the mean, too.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    tensors: tuple[str, ...]
    layout: str
    sizes: Mapping[str, int]
    vocab_size: int
    folder: TensorFolder
    on_read: Callable[[str, np.ndarray], None]
    new_ids: frozenset[int] = frozenset()

    def read(self, index: Index) -> np.ndarray:
        """Returns the part at `index`: one slice per dimension, without steps."""
        bounds = [
            slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True)
        ]
        if len(bounds) == len(self._letters):
            return self._read_tensor(self.tensors[0], bounds)
        if bounds[0].stop - bounds[0].start == 1:  # as blocks of a checkpoint are read: no copy
            return self._read_tensor(self.tensors[bounds[0].start], bounds[1:])[None]
        result = np.empty([part.stop - part.start for part in bounds], self.dtype)
        for place, layer in enumerate(range(bounds[0].start, bounds[0].stop)):
            result[place] = self._read_tensor(self.tensors[layer], bounds[1:])
        return result

    @property
    def _letters(self) -> list[str]:
        """The letters of our dimensions."""
        return self.layout.split("->")[1].split()

    def _read_tensor(self, name: str, bounds: list[slice]) -> np.ndarray:
        """Returns part of one tensor, in our layout and dtype."""
        view = einops.rearrange(self.folder.read(name), self.layout, **self.sizes)
        if "V" not in self._letters:
            return self._copy(name, view[tuple(bounds)])
        axis = self._letters.index("V")
        wanted, stored = bounds[axis], view.shape[axis]
        inside = [*bounds]
        inside[axis] = slice(min(wanted.start, stored), min(wanted.stop, stored))
        others = tuple(part for i, part in enumerate(bounds) if i != axis)
        parts = [self._copy(name, view[tuple(inside)])]
        for row in sorted(self.new_ids):
            if inside[axis].start <= row < inside[axis].stop:
                place = [slice(None)] * view.ndim
                place[axis] = row - inside[axis].start
                parts[0][tuple(place)] = self._mean_row[others]
        num_new = min(wanted.stop, self.vocab_size) - max(wanted.start, stored)
        if num_new > 0:
            mean = np.expand_dims(self._mean_row[others], axis)
            parts.append(np.repeat(mean, num_new, axis).astype(self.dtype))
        num_padding = wanted.stop - max(wanted.start, self.vocab_size, stored)
        if num_padding > 0:
            shape = [part.stop - part.start for part in bounds]
            shape[axis] = num_padding
            parts.append(np.zeros(shape, self.dtype))
        return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]

    def _copy(self, name: str, view: np.ndarray) -> np.ndarray:
        part = contiguous(view)
        self.on_read(name, part)
        # A copy of ours: what is mapped from a file cannot be written to.
        return part.astype(self.dtype, copy=bool(self.new_ids))

    @functools.cached_property
    def _mean_row(self) -> np.ndarray:
        """What new rows of a table begin as."""
        return mean_row(self.folder.read(self.tensors[0]))


def part_sources(
    table: Table,
    folder: TensorFolder,
    names: Mapping[str, str],
    dtype: np.dtype,
    what: str,
    on_read: Callable[[str, np.ndarray], None] = lambda name, part: None,
    new_ids: frozenset[int] = frozenset(),
) -> dict[str, ParamSource]:
    """Returns the sources of one part's parameters by path within the part.

    Args:
        table: of the part.
        folder: that holds its tensors.
        names: own name (see `layouts.py`) -> name in the folder, of every tensor of the part.
        dtype: of the parameters.
        what: the part's name, for messages.
        on_read: see `ParamSource`.
        new_ids: see `ParamSource`.

    Raises:
        UserError: a name is missing or unknown, or a shape is not that of the configuration; all
            are listed.
    """
    check_names(table, list(names), what)
    sources, problems = {}, []
    for row in table.rows:
        tensors = tuple(names[own] for own in table.names_of(row))
        try:
            sources[row.ours] = _create(table, row, folder, tensors, dtype, on_read, new_ids)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return sources


def _create(
    table: Table,
    row: Row,
    folder: TensorFolder,
    tensors: tuple[str, ...],
    dtype: np.dtype,
    on_read: Callable[[str, np.ndarray], None],
    new_ids: frozenset[int],
) -> ParamSource:
    """Returns the source of one row after checking the shapes of its tensors."""
    sizes = row_sizes(table, row)
    vocab_size = sizes.get("V", 0)
    if "V" in sizes:
        stored = folder.specs[tensors[0]].shape
        place = row.layout.split("->")[0].split().index("V")
        sizes["V"] = _stored_rows(tensors[0], stored, place, vocab_size)
    for name in tensors:
        _check_shape(row, sizes, name, folder)
    ours = {**sizes, "V": table.padded_vocab_size}
    shape = tuple(ours[letter] for letter in row.layout.split("->")[1].split())
    if LAYER in row.theirs:
        shape = (table.num_layers, *shape)
    return ParamSource(
        shape, np.dtype(dtype), tensors, row.layout, sizes, vocab_size, folder, on_read, new_ids
    )


def _stored_rows(name: str, shape: tuple[int, ...], place: int, vocab_size: int) -> int:
    """Returns how many rows of the vocabulary a tensor holds."""
    rows = shape[place] if place < len(shape) else 0
    if not vocab_size - _MOST_NEW_ROWS <= rows <= vocab_size:
        raise UserError(
            f"{name} holds {rows:,} tokens, the configuration needs {vocab_size:,}; set "
            f"model.llm.vocab_size to {rows:,} plus the tokens that are new"
        )
    return rows


def _check_shape(row: Row, sizes: Mapping[str, int], name: str, folder: TensorFolder) -> None:
    """Raises a UserError unless a tensor has the shape that its pattern says."""
    spec = folder.specs[name]
    if not np.issubdtype(spec.dtype, np.floating) and spec.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{spec.file}: {name} is of {spec.dtype}; weights are floating-point")
    ghost = np.broadcast_to(np.zeros((), np.int8), spec.shape)  # of any size, without memory
    try:
        einops.rearrange(ghost, row.layout, **sizes)
    except einops.EinopsError as error:
        raise UserError(
            f"{spec.file}: {name} has shape {list(spec.shape)}, but the configuration needs "
            f"{row.layout.split('->')[0].strip()!r} with {dict(sizes)}; check the model's sizes"
        ) from error
