"""Folders of weights -> sources of our parameters, which are read when their turn comes.

A folder is a Hugging Face one (`folder.py`) or one of our own checkpoints. Who reads the sources
decides where they go: `training/initial.py` puts them on devices, `to_checkpoint.py` into a
checkpoint. Parts that no folder holds begin as those of a new model.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from metamorph_jax.checkpoints.arrays import BlockReader
from metamorph_jax.checkpoints.folders import CHECKPOINTS, find_checkpoints
from metamorph_jax.checkpoints.selection import Selector
from metamorph_jax.checkpoints.streaming import open_params
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.folder import HubFolder, open_folder
from metamorph_jax.hub.inference import check_same_model
from metamorph_jax.hub.layouts import TEXT_SIDE
from metamorph_jax.hub.param_source import part_sources
from metamorph_jax.hub.parts import part_tables

_logger = logging.getLogger(__name__)
_SHOWN = 5
_IN_CACHE = 2**17  # numbers looked at at a time; several times as fast as all at once


class Source(Protocol):
    """A parameter that is read in parts: a `ParamSource`, or one of a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part at `index`, one slice per dimension."""
        ...


class NanWatch:
    """Notes the tensors in which NaN or infinity was seen.

    Attributes:
        names: of these tensors.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, name: str, part: np.ndarray) -> None:
        """Looks at a part of tensor `name`."""
        if not is_finite(part):
            self.names.add(name)

    def warn(self) -> None:
        """Logs a warning that names them; silent if there are none."""
        if self.names:
            _logger.warning(
                "NaN or infinity in %d tensor(s): %s. They were taken over as they are; the model "
                "will answer nonsense until they are mended at their source",
                len(self.names),
                ", ".join(sorted(self.names)[:_SHOWN]),
            )


def is_finite(part: np.ndarray) -> bool:
    """Returns whether there is neither NaN nor infinity in an array of floating-point numbers."""
    flat = part.reshape(-1)
    pieces = (flat[i : i + _IN_CACHE] for i in range(0, flat.size, _IN_CACHE))
    if part.dtype.itemsize != 2:
        return all(np.isfinite(piece).all() for piece in pieces)
    # All bits of the exponent are set exactly in NaN and infinity; no conversion is needed.
    exponent = np.uint16(0x7C00 if part.dtype == np.float16 else 0x7F80)
    return not any(((p.view(np.uint16) & exponent) == exponent).any() for p in pieces)


def find_sources(
    config: ModelConfig, folders: Sequence[str | Path], on_read: NanWatch
) -> dict[str, Source]:
    """Returns the sources of all parameters that folders hold, by path in our tree.

    Args:
        config: of the model; parts that it lacks are left out of a folder that has them.
        folders: each with any of its parts; of a part that several have, the first is taken.
        on_read: sees what is read.

    Raises:
        UserError: a folder cannot be used, or what it holds is not that of `config`; what is wrong
            with all parts is reported together.
    """
    opened = {Path(path): None if is_run(Path(path)) else open_folder(path) for path in folders}
    check_same_model(config, [folder for folder in opened.values() if folder is not None])
    owners: dict[str, Path] = {}
    sources: dict[str, Source] = {}
    problems = []
    for path, folder in opened.items():
        for part, find in _parts(path, folder, config, on_read).items():
            if part in owners:
                _logger.warning("%s: %s is taken from %s instead", path, part, owners[part])
                continue
            owners[part] = path
            try:
                sources |= {f"{part}/{name}": source for name, source in find().items()}
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return sources


def is_run(path: Path) -> bool:
    """Returns whether a folder is one of our own runs or imports."""
    return (path / CHECKPOINTS).is_dir()


def _parts(
    path: Path, folder: HubFolder | None, config: ModelConfig, on_read: NanWatch
) -> dict[str, Callable[[], dict[str, Source]]]:
    """Returns, by part, what gives the sources of that part of a folder."""
    if folder is None:
        return _run_parts(path, np.dtype(config.param_dtype))
    tables = part_tables(config)
    for name in folder.dead:
        _logger.warning("%s: %s is used by no model: left out", path, name)
    for part in folder.parts.keys() - tables.keys():
        _logger.warning("%s holds a %s, which the configured model lacks: left out", path, part)
    return {
        part: functools.partial(
            part_sources,
            tables[part],
            folder.tensors,
            names,
            np.dtype(config.param_dtype),
            f"{path}: {part}",
            on_read,
        )
        for part, names in folder.parts.items()
        if part in tables
    }


def _run_parts(path: Path, dtype: np.dtype) -> dict[str, Callable[[], dict[str, Source]]]:
    """Returns the same of one of our own runs: its newest checkpoint that verifies."""
    directory, step = find_checkpoints(path, None)
    folder = Selector(directory).choose(step, quarantine=False)
    if folder is None:
        raise UserError(f"{path}: there is no complete checkpoint in it")
    parts: dict[str, dict[str, Source]] = {}
    for name, reader in open_params(folder).items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = CastSource(reader, dtype)
    return {part: functools.partial(dict, sources) for part, sources in parts.items()}


@dataclasses.dataclass(frozen=True)
class CastSource:
    """A parameter of a checkpoint, given out in another dtype."""

    reader: BlockReader
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.reader.shape

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part at `index`."""
        return self.reader.read(index).astype(self.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A parameter that is in memory already."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part at `index`."""
        return self.array[index]


def unused_tensors(config: ModelConfig, names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the tensors of a folder that the model has no use for: "part/own name" -> name.

    They are kept beside an imported checkpoint, so that an export has all that the import had. A
    tower's text side is not among them: no model has a place for it.

    Args:
        config: of the model.
        names: `HubFolder.parts`.
    """
    used = {part: set(table.names()) for part, table in part_tables(config).items()}
    return {
        f"{part}/{own}": name
        for part, tensors in names.items()
        for own, name in tensors.items()
        if own not in used.get(part, set()) and not own.startswith(TEXT_SIDE)
    }
