"""Folders of weights -> one of our checkpoints: `python -m metamorph_jax.convert hf-to-orbax`.

A run can begin from it (`model.init_from`) and `generate` can answer with it.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from metamorph_jax.checkpoints.folders import CHECKPOINTS
from metamorph_jax.checkpoints.metadata import CheckpointMeta, library_versions
from metamorph_jax.checkpoints.naming import tree_fingerprint
from metamorph_jax.checkpoints.streaming import write_params
from metamorph_jax.config.loading import to_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.hub.folder import CONFIG_FILE, open_folder
from metamorph_jax.hub.importing import (
    ArraySource,
    NanWatch,
    Source,
    find_sources,
    unused_tensors,
)
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_file
from metamorph_jax.models.init import abstract_params, init_some
from metamorph_jax.trees import flatten

IMPORT_STAGE = "import"
UNUSED_FILE = "unused.safetensors"


def import_checkpoint(
    run: RunConfig,
    folders: Sequence[Path],
    out: Path,
    on_written: Callable[[int], None] = lambda num_bytes: None,
) -> Path:
    """Writes the checkpoint of step 0 and returns its folder.

    Args:
        run: its recipe is stored with the checkpoint; it may have no stages.
        folders: of weights, each part in one of them; parts in none begin at random.
        out: folder of a run, made when missing.
        on_written: is told the bytes of each block.

    Raises:
        UserError: a folder cannot be used or does not fit the recipe, there is a checkpoint in
            `out`, or no space is left.
    """
    watch = NanWatch()
    sources = with_new_parts(run.model, run.seed, find_sources(run.model, folders, watch))
    unused = functools.partial(_write_unused, run.model, folders)
    checkpoint = write_params(out / CHECKPOINTS, sources, _meta(run), on_written, unused)
    watch.warn()
    return checkpoint


def num_bytes(model: ModelConfig) -> int:
    """Returns the size of a model's parameters, vocabulary padding included."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_params(model)))


def with_new_parts(
    model: ModelConfig, seed: int, sources: Mapping[str, Source]
) -> dict[str, Source]:
    """Returns sources of all parameters, in the order of the tree; what is new begins at random."""
    names = list(flatten(abstract_params(model)))
    fresh = frozenset(names) - sources.keys()
    made = jax.jit(lambda key: init_some(model, key, fresh))(jax.random.key(seed)) if fresh else {}
    return {
        name: ArraySource(np.asarray(made[name])) if name in made else sources[name]
        for name in names
    }


def _meta(run: RunConfig) -> CheckpointMeta:
    return CheckpointMeta(
        step=0,
        stage=IMPORT_STAGE,
        stage_step=0,
        stage_total_steps=0,
        data_fingerprint="",
        seed=run.seed,
        recipe=json.dumps(to_dict(run)),
        model_fingerprint=tree_fingerprint(abstract_params(run.model)),
        versions=library_versions(),
    )


def _write_unused(model: ModelConfig, folders: Sequence[Path], checkpoint: Path) -> None:
    """Keeps what the model has no use for beside it, so that an export can have it again."""
    tensors: dict[str, TensorToWrite] = {}
    for path in folders:
        if not (path / CONFIG_FILE).is_file():
            continue  # one of our own checkpoints
        folder = open_folder(path)
        for own, name in unused_tensors(model, folder.parts).items():
            tensors[own] = _copy(folder.tensors, name)
    if tensors:
        write_file(checkpoint / UNUSED_FILE, tensors)


def _copy(folder: TensorFolder, name: str) -> TensorToWrite:
    spec = folder.specs[name]
    return TensorToWrite(spec.shape, spec.dtype, functools.partial(folder.read, name))
