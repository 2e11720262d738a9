"""One of our own runs or imports as a folder of weights."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from metamorph_jax.checkpoints.arrays import BlockReader
from metamorph_jax.checkpoints.folders import (
    CHECKPOINTS,
    find_checkpoints,
    folder_of,
    no_checkpoint,
)
from metamorph_jax.checkpoints.manifest import read_manifest
from metamorph_jax.checkpoints.naming import ArraySpec
from metamorph_jax.checkpoints.selection import Selector, complete_steps
from metamorph_jax.checkpoints.store import PARAMS, read_meta_file
from metamorph_jax.checkpoints.streaming import open_params
from metamorph_jax.config.loading import from_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.hub.folder import CONFIG_FILE

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A checkpoint, opened but not read.

    Attributes:
        path: as it was named.
        folder: of the checkpoint.
        model: of its recipe.
        parts: by part, the parameters by their path within it.
        specs: likewise, what each is.
    """

    path: Path
    folder: Path
    model: ModelConfig
    parts: dict[str, dict[str, BlockReader]]
    specs: dict[str, dict[str, ArraySpec]]


def is_run(path: Path) -> bool:
    """Returns whether a folder is one of our runs, or a checkpoint in it."""
    if (path / CONFIG_FILE).is_file() or not path.is_dir():
        return False
    return (path / CHECKPOINTS).is_dir() or bool(complete_steps(path)) or path.name.isdigit()


def open_run(path: Path, verify: bool = True) -> OpenRun:
    """Returns the newest checkpoint of a run, or the one that `path` names.

    Args:
        path: of a run, its checkpoints, or one of them.
        verify: hash every file of it.

    Raises:
        UserError: there is none that can be used.
    """
    directory, step = find_checkpoints(path, None)
    if verify:
        folder = Selector(directory.absolute()).choose(step, quarantine=False)
    else:
        steps = complete_steps(directory) if step is None else [step]
        folder = folder_of(directory.absolute(), steps[0]) if steps else None
    if folder is None:
        raise no_checkpoint(path)
    run = from_dict(json.loads(read_meta_file(folder).recipe), RunConfig)
    specs = {
        name.removeprefix(PARAMS): spec
        for name, spec in read_manifest(folder).arrays.items()
        if name.startswith(PARAMS)
    }
    return OpenRun(path, folder, run.model, _by_part(open_params(folder)), _by_part(specs))


def _by_part(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Returns parameters by the part they belong to."""
    parts: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    return parts
