"""Where the records of a file are: found once, and kept beside it as FILE.index.

An index is a safetensors file with the numbers as tensors and, as metadata, which content they
belong to. One that does not fit the file's size and time of change, or its own checksum, is made
again; to force that, delete it. Large ones are mapped, not copied: two million records cost one
pass over their numbers, and no memory that processes would not share.
"""

import dataclasses
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from metamorph_jax.data.sources.files import Stamp, changed, find_file
from metamorph_jax.errors import UserError

ENDING = ".index"
_MAPPED_BYTES = 4 * 2**20  # a smaller index is read, because a mapping holds a file open
_MAX_HEADER_BYTES = 2**20
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "I64": np.int64}
_NOT_OURS = (OSError, ValueError, LookupError, TypeError, AttributeError)
_NOT_OURS += (ArithmeticError, RecursionError)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Found:
    """What one reading of a whole file tells.

    Attributes:
        arrays: by name; uint8, uint32 or int64.
        sha256: of the content.
        damage: what is wrong behind the last usable record; "" if nothing is.
    """

    arrays: Mapping[str, np.ndarray]
    sha256: str
    damage: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
    """What was found in a file that has not changed since.

    Attributes:
        path: of the data file.
        layout: name and version of what the arrays mean.
        stamp: of the data file.
        found: the arrays and the hash of the content.
        is_kept: whether it stands beside the data file.
    """

    path: str
    layout: str
    stamp: Stamp
    found: Found
    is_kept: bool

    def __getitem__(self, name: str) -> np.ndarray:
        return self.found.arrays[name]

    def __reduce__(self) -> tuple:
        # Mapped arrays would be copied into the pickle; the other process maps them itself.
        if self.is_kept:
            return _reopen, (self.path, self.layout, self.stamp, self.found.sha256)
        return Index, (self.path, self.layout, self.stamp, self.found, False)


def open_index(path: str, layout: str, find: Callable[[str], Found]) -> Index:
    """Returns the index of a file: the kept one, or a new one.

    Args:
        path: of the data file.
        layout: changes when `find` finds other things in the same file.
        find: reads the whole file.

    Raises:
        UserError: the file is missing or changes meanwhile; and what `find` raises.
    """
    stamp = find_file(path)
    found = _load(path, layout, stamp)
    if found is not None:
        return Index(path, layout, stamp, found, is_kept=True)
    try:
        found = find(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the file") from None
    if find_file(path) != stamp:
        raise changed(path)
    try:
        _keep(path, layout, stamp, found)
    except OSError as error:
        _logger.warning(
            "%s%s cannot be written (%s), so the file is indexed again at every start; make the "
            "folder writable once to avoid it",
            path,
            ENDING,
            error.strerror or error,
        )
        return Index(path, layout, stamp, found, is_kept=False)
    found = _load(path, layout, stamp) or found
    return Index(path, layout, stamp, found, is_kept=True)


def _reopen(path: str, layout: str, stamp: Stamp, sha256: str) -> Index:
    """Returns an index that another process has made."""
    found = _load(path, layout, stamp)
    if found is None or found.sha256 != sha256:
        raise UserError(
            f"{path}{ENDING}: the index was deleted or changed while it was in use; start again"
        )
    return Index(path, layout, stamp, found, is_kept=True)


def _keep(path: str, layout: str, stamp: Stamp, found: Found) -> None:
    """Writes the index; other processes see the old state or the new one."""
    metadata = {
        "layout": layout,
        "size": str(stamp.size),
        "mtime_ns": str(stamp.mtime_ns),
        "sha256": found.sha256,
        "damage": found.damage,
        "checksum": _checksum(found),
    }
    target = Path(path + ENDING)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(save(dict(found.arrays), metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: str, layout: str, stamp: Stamp) -> Found | None:
    """Returns what the kept index says; None if there is none that fits."""
    try:
        metadata, arrays = _read_safetensors(path + ENDING)
        kept = Stamp(int(metadata["size"]), int(metadata["mtime_ns"]))
        if metadata["layout"] != layout or kept != stamp:
            return None
        found = Found(arrays, str(metadata["sha256"]), str(metadata["damage"]))
        return found if metadata["checksum"] == _checksum(found) else None
    except _NOT_OURS:
        return None  # missing, damaged, or not ours: made again


def _checksum(found: Found) -> str:
    """Returns a SHA-256 of all that an index says, by which damage to it is noticed.

    Readers then need not check each number that leads them into the file.
    """
    digest = hashlib.sha256(repr((found.sha256, found.damage)).encode())
    for name, values in sorted(found.arrays.items()):
        digest.update(repr((name, values.dtype.str, values.shape)).encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _read_safetensors(path: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns (metadata, arrays); large arrays are mapped, which the library does not offer."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
        size = os.fstat(file.fileno()).st_size - 8 - length
        if size > _MAPPED_BYTES:
            data = np.memmap(file, np.uint8, "r", offset=8 + length)
        else:
            data = np.frombuffer(file.read(), np.uint8)
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return metadata, arrays
