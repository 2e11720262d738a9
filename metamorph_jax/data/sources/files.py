"""Plain files that are read at many places by many threads and processes, and must not change.

`pread` has no position that threads or forked processes could fight over.
"""

import dataclasses
import functools
import hashlib
import os
import stat
from collections.abc import Iterator

from metamorph_jax.errors import UserError

_OPEN_FILES = 64  # per process; sources may have thousands of shards
_CHUNK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What tells that a file was written to since.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last change.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """Returns the stamp of an `os.stat` result."""
        return cls(status.st_size, status.st_mtime_ns)


def find_file(path: str) -> Stamp:
    """Returns the stamp of a file.

    Raises:
        UserError: it is missing, or is not a plain file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        trouble = getattr(error, "strerror", None) or str(error)
        trouble = "no such data file" if isinstance(error, FileNotFoundError) else trouble
        raise UserError(f"{path}: {trouble}; check `path` of the data source") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{path}: not a plain file; `path` of a data source is a file, or a pattern with * "
            "for many of them"
        )
    return Stamp.of(status)


class _OpenFile:
    """A descriptor that closes when nobody reads from it any more."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


# Keyed by the stamp, too, so that a file that was replaced is opened again.
@functools.lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, stamp: Stamp) -> _OpenFile:
    return _OpenFile(path)


def read_range(path: str, stamp: Stamp, offset: int, size: int) -> bytes:
    """Returns `size` bytes of a file from `offset` on.

    Args:
        path: of the file.
        stamp: that the file had when the places in it were found.
        offset: in bytes.
        size: in bytes.

    Raises:
        UserError: the file is gone, or was written to since.
    """
    try:
        file = _open(path, stamp)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} while it was read; start again") from None
    if Stamp.of(os.fstat(file.descriptor)) != stamp:
        raise changed(path)
    parts = []
    while size > 0 and (part := os.pread(file.descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def changed(path: str) -> UserError:
    """Returns the complaint that a file was written to while it was in use."""
    return UserError(
        f"{path}: the file was changed while it was read; leave data files alone during a run, "
        "and start again"
    )


def read_chunks(path: str) -> Iterator[bytes]:
    """Yields a file's content in pieces of a megabyte."""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def sha256_of(path: str) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
