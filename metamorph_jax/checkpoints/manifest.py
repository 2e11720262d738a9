"""The manifest: size and SHA-256 of every file of a checkpoint, shape and dtype of every array.

It is written last, after every other file has reached the disk, and it carries a hash of itself.
A checkpoint whose files all match its manifest is complete and undamaged; anything else is not
used. Orbax commits atomically but notices neither a flipped bit nor a file that went missing later.
"""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from metamorph_jax.checkpoints.metadata import FORMAT_VERSION, check_format_version
from metamorph_jax.checkpoints.naming import ArraySpec
from metamorph_jax.errors import UserError

MANIFEST_FILE = "manifest.json"
_MAX_THREADS = 8


class DamagedCheckpointError(Exception):
    """A file of a checkpoint is missing or is not what was written; the text says which and why."""


class FileRecord(NamedTuple):
    """Size in bytes and hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        files: by path relative to the checkpoint; all but the manifest itself.
        arrays: by name (naming.py).
    """

    files: dict[str, FileRecord]
    arrays: dict[str, ArraySpec]


def write_manifest(folder: Path, arrays: dict[str, ArraySpec]) -> None:
    """Forces every file of `folder` to disk and writes its manifest, also forced to disk.

    Raises:
        OSError: from the file system, for instance when it is full.
    """
    names = sorted(_relative_files(folder))
    with ThreadPoolExecutor(_MAX_THREADS) as pool:
        records = list(pool.map(lambda name: _hash_file(folder / name, sync=True), names))
    values = {
        "format_version": FORMAT_VERSION,
        "files": {name: record._asdict() for name, record in zip(names, records, strict=True)},
        "arrays": {name: spec._asdict() for name, spec in arrays.items()},
    }
    write_durably(folder / MANIFEST_FILE, _sealed(values))
    for subfolder, _, _ in os.walk(folder):
        sync_folder(Path(subfolder))


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of `folder`, having checked the manifest itself but no other file.

    Raises:
        DamagedCheckpointError: it is missing, or not what was written.
        UserError: another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except PermissionError as error:
        raise UserError(f"{path} may not be read: {error}") from error
    except OSError as error:
        raise DamagedCheckpointError(f"file {MANIFEST_FILE}: {error.strerror}") from error
    try:
        values = json.loads(content)
        intact = isinstance(values, dict) and content == _sealed(values).encode()
    except ValueError:
        intact = False
    if not intact:
        raise DamagedCheckpointError(f"file {MANIFEST_FILE}: its content was altered")
    check_format_version(values, str(path))
    return Manifest(
        files={name: FileRecord(**record) for name, record in values["files"].items()},
        arrays={
            name: ArraySpec(tuple(spec["shape"]), spec["dtype"])
            for name, spec in values["arrays"].items()
        },
    )


def fingerprint(folder: Path) -> str:
    """Returns the SHA-256 of a checkpoint's manifest, and so, in effect, of all its files."""
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def verify(folder: Path) -> Manifest:
    """Returns the manifest of `folder` after checking every file against it.

    Every byte is read and hashed, `_MAX_THREADS` files at a time: about as long as reading the
    checkpoint from its disk, or, where the disk is faster than SHA-256, about 1 s per GB and core.

    Raises:
        DamagedCheckpointError: naming the first file that is missing, of another size or altered.
        UserError: another format version, or a file that may not be read.
    """
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        _check_size(folder / name, name, record)
    with ThreadPoolExecutor(_MAX_THREADS) as pool:
        list(pool.map(lambda item: _check_hash(folder / item[0], *item), manifest.files.items()))
    return manifest


def write_durably(path: Path, text: str) -> None:
    """Writes a text file and forces it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Forces the entries of `folder` (new names, renames) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(values: dict[str, Any]) -> str:
    """Returns the one text that stands for `values`, with the hash of the rest under "sha256"."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(_dump(rest).encode()).hexdigest()
    return _dump({**rest, "sha256": digest})


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def _relative_files(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST_FILE
    ]


def _hash_file(path: Path, sync: bool = False) -> FileRecord:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(file.tell(), digest)


def _check_size(path: Path, name: str, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedCheckpointError(f"file {name}: {error.strerror}") from error
    if size != record.size:
        raise DamagedCheckpointError(f"file {name}: {size} bytes, {record.size} were written")


def _check_hash(path: Path, name: str, record: FileRecord) -> None:
    try:
        found = _hash_file(path)
    except PermissionError as error:
        raise UserError(f"{path} may not be read: {error}") from error
    except OSError as error:
        raise DamagedCheckpointError(f"file {name}: {error.strerror}") from error
    if found != record:
        raise DamagedCheckpointError(f"file {name}: its content was altered (SHA-256 differs)")
