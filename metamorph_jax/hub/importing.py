"""Folders of weights -> sources of our parameters, which are read when their turn comes.

A folder is a Hugging Face one (`folder.py`) or one of our own runs. Who reads the sources decides
where they go: `training/initial.py` puts them on devices, `to_checkpoint.py` into a checkpoint.
Parts that no folder holds begin as those of a new model.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from metamorph_jax.checkpoints.arrays import BlockReader
from metamorph_jax.checkpoints.naming import array_specs, check_same_arrays
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError, visible
from metamorph_jax.hub.folder import HubFolder, open_folder
from metamorph_jax.hub.inference import check_same_model
from metamorph_jax.hub.param_source import part_sources
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.runs import OpenRun, is_run, open_run
from metamorph_jax.models.init import abstract_params
from metamorph_jax.trees import flatten

_logger = logging.getLogger(__name__)
_SHOWN = 5
_IN_CACHE = 2**17  # numbers looked at at a time; several times as fast as all at once
DECODER = "language_model"


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
                visible(", ".join(sorted(self.names)[:_SHOWN])),
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
    config: ModelConfig,
    folders: Sequence[str | Path],
    on_read: NanWatch,
    new_ids: Collection[int] = (),
    verify: bool = True,
) -> dict[str, BlockReader]:
    """Returns the sources of all parameters that folders hold, by path in our tree.

    Args:
        config: of the model; parts that it lacks are left out of a folder that has them.
        folders: each with any of its parts; of a part that several have, the first is taken.
        on_read: sees what is read.
        new_ids: tokens that a decoder of others does not know yet, whatever stands in their rows.
        verify: hash every file of a run of ours; False where nothing is going to be read.

    Raises:
        UserError: a folder cannot be used, or what it holds is not that of `config`; what is wrong
            with all parts is reported together.
    """
    opened = {
        Path(path): open_run(Path(path), verify) if is_run(Path(path)) else open_folder(path)
        for path in folders
    }
    check_same_model(config, list(opened.values()))
    sources: dict[str, BlockReader] = {}
    problems = []
    for part, path in owners(opened, config).items():
        folder = opened[path]
        try:
            if isinstance(folder, OpenRun):
                found = _from_run(folder, part, config)
            else:
                found = _from_hub(folder, part, config, on_read, new_ids)
        except UserError as error:
            problems.append(str(error))
        else:
            sources |= {f"{part}/{name}": source for name, source in found.items()}
    if problems:
        raise UserError("\n".join(problems))
    return sources


def owners(opened: Mapping[Path, HubFolder | OpenRun], config: ModelConfig) -> dict[str, Path]:
    """Returns which folder each part is taken from; logs what is left out."""
    wanted = {name.split("/")[0] for name in flatten(abstract_params(config))}
    found: dict[str, Path] = {}
    for path, folder in opened.items():
        for name in getattr(folder, "dead", ()):
            _logger.warning("%s: %s is used by no model: left out", path, visible(name))
        for part in folder.parts:
            if part not in wanted:
                _logger.warning("%s holds a %s, which the model lacks: left out", path, part)
            elif part in found:
                _logger.warning("%s: %s is taken from %s instead", path, part, found[part])
            else:
                found[part] = path
    return found


def _from_hub(
    folder: HubFolder, part: str, config: ModelConfig, on_read: NanWatch, new_ids: Collection[int]
) -> Mapping[str, BlockReader]:
    """Returns the sources of one part of a Hugging Face folder."""
    return part_sources(
        part_tables(config)[part],
        folder.tensors,
        folder.parts[part],
        np.dtype(config.param_dtype),
        f"{folder.path}: {part}",
        on_read,
        frozenset(new_ids) if part == DECODER else frozenset(),
    )


def _from_run(run: OpenRun, part: str, config: ModelConfig) -> Mapping[str, BlockReader]:
    """Returns the sources of one part of a run, all of which has to be there."""
    shapes = flatten(abstract_params(config))
    wanted = {name: leaf for name, leaf in shapes.items() if name.startswith(f"{part}/")}
    stored = {f"{part}/{name}": run.specs[part][name] for name in run.specs[part]}
    check_same_arrays(array_specs(wanted), stored, str(run.folder), cast_floats=True)
    dtype = np.dtype(config.param_dtype)
    return {name: CastSource(reader, dtype) for name, reader in run.parts[part].items()}


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


def describe_sources(sources: Mapping[str, BlockReader], names: Collection[str]) -> str:
    """Returns one line on what is read and what begins at random.

    Args:
        sources: what is read.
        names: of all parameters of the model.
    """
    num_read = sum(int(np.prod(source.shape, dtype=np.int64)) for source in sources.values())
    fresh = sorted({name.split("/")[0] for name in names if name not in sources})
    return f"initial weights: {num_read:,} read; at random: {', '.join(fresh) or 'none'}"
