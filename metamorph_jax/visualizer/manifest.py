"""Folders that appear whole or not at all, and whose later damage shows.

A folder is written beside its final place, every file hashed into `manifest.json` and forced to
disk, and renamed. Checkpoints and the parts of Stable Diffusion that a run keeps are such folders.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST_FILE = "manifest.json"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder to write into, which becomes `folder` when the body ends well.

    What was at `folder` before is replaced. After an error nothing is left of the new one.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder that has a manifest, in words, or None."""
    try:
        for name, record in read_manifest(folder).items():
            if _hash_file(folder / name) != record:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError):
        return f"{MANIFEST_FILE} is not readable"
    return None


def read_manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    """Returns size and SHA-256 ("size", "sha256") of each file by its path in the folder."""
    return json.loads((folder / MANIFEST_FILE).read_text("utf-8"))


def _write_manifest(folder: Path) -> None:
    """Writes the manifest of all files in a folder; everything is forced to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(folder)): _hash_file(path, sync=True) for path in files}
    with open(folder / MANIFEST_FILE, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for parent in {folder, *(path.parent for path in files)}:
        _sync_folder(parent)


def _hash_file(path: Path, *, sync: bool = False) -> dict[str, int | str]:
    """Returns size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _sync_folder(folder: Path) -> None:
    """Forces the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
