"""Checkpoints larger than memory: written from readers of blocks, and read as such.

For import and export (hub/); what a training run saves and restores goes through store.py. The
folder on disk is the same, so that either can read what the other wrote.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from metamorph_jax.checkpoints import folders
from metamorph_jax.checkpoints.arrays import BlockReader, StoredArray, open_blocks, write_blocks
from metamorph_jax.checkpoints.manifest import read_manifest, write_durably, write_manifest
from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.naming import ArraySpec
from metamorph_jax.checkpoints.store import META_FILE, PARAMS, is_disk_full
from metamorph_jax.errors import UserError


def write_params(
    directory: Path,
    params: Mapping[str, BlockReader],
    meta: CheckpointMeta,
    on_written: Callable[[int], None] = lambda num_bytes: None,
    add_files: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Writes a checkpoint of parameters only, and returns its folder.

    It appears under its name when everything in it is on the disk; if anything goes wrong, nothing
    is left of it.

    Args:
        directory: of checkpoints; made when missing.
        params: by name, as "language_model/final_norm/scale".
        meta: stored beside them.
        on_written: is told the bytes of each block.
        add_files: puts more files into the folder it is given; the manifest covers them.

    Raises:
        UserError: there is a checkpoint of that step already, or no space is left.
    """
    final = folders.folder_of(directory.absolute(), meta.step)
    if final.exists():
        raise UserError(f"{final} is there already; name another folder, or remove it")
    temporary = folders.temporary_folder_of(final.parent, meta.step, os.getpid())
    named = {PARAMS + name: reader for name, reader in params.items()}
    specs = {name: ArraySpec(tuple(r.shape), str(r.dtype)) for name, r in named.items()}
    temporary.mkdir(parents=True)  # not within the try: what another process writes is not ours
    try:
        write_blocks(temporary, named, on_written)
        add_files(temporary)
        write_durably(temporary / META_FILE, meta.to_json())
        write_manifest(temporary, specs)
        folders.publish(temporary, final)
    except BaseException as error:  # Ctrl-C too
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise UserError(f"no space left for {final}; nothing of it was kept") from error
        raise
    return final


def open_params(folder: Path) -> dict[str, StoredArray]:
    """Returns the parameters of a checkpoint by name, to be read in parts.

    Args:
        folder: of one checkpoint, verified (`manifest.verify`).
    """
    names = [name for name in read_manifest(folder).arrays if name.startswith(PARAMS)]
    return {name.removeprefix(PARAMS): open_blocks(folder, name) for name in names}
