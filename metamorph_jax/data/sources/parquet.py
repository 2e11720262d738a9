"""`.parquet`: tables as Hugging Face publishes them, with images in the rows.

Columns are those of a JSON record. Images are bytes, {"bytes", "path"} structures, paths, or lists
of these, and stay encoded until the image loader looks at them. A parquet file can only be read
by row groups; the last few of all files stay in memory.
"""

import collections
import functools
import logging
import os
import threading
from typing import Any

import numpy as np

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.files import Stamp, changed, find_file, sha256_of
from metamorph_jax.data.sources.index import Found, open_index
from metamorph_jax.errors import UserError

_OPEN_FILES = 16
_CACHE_BYTES = 256 * 2**20  # of row groups of all files, per process
_LARGE_GROUP_BYTES = 128 * 2**20
_TURNS, _MEDIA = ("conversations", "messages"), ("image", "images")
_EXPECTED = (
    "expected `messages` or `conversations` (lists of structures) or `caption` (strings), with "
    "`image` or `images` (bytes, {bytes, path}, paths, or lists of these)"
)
_logger = logging.getLogger(__name__)


class ParquetSource(Source):
    """The rows of one parquet file.

    Raises:
        UserError: the file is missing, damaged, empty, of another format, or has other columns.
    """

    def __init__(self, path: str):
        self.path = path
        self._index = open_index(path, "parquet 1", _find)
        self.fingerprint = self._index.found.sha256

    def __len__(self) -> int:
        return int(self._index["group_ends"][-1])

    def where(self, index: int) -> str:
        """Returns FILE:NUMBER, counted from 1."""
        return f"{self.path}:{index + 1}"

    def read(self, index: int) -> Record:
        """Returns one record."""
        ends = self._index["group_ends"]
        group = int(np.searchsorted(ends, index, side="right"))
        first = int(ends[group - 1]) if group else 0
        stamp = self._index.stamp
        if find_file(self.path) != stamp:
            raise changed(self.path)
        try:
            table = _row_group(self.path, stamp, group)
            (fields,) = table.slice(index - first, 1).to_pylist()
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            raise BadSample(
                "malformed_record",
                f"{self.where(index)}: row group {group} cannot be read ({_first_line(error)}); "
                "fetch the file again, or write it anew",
            ) from None
        return parse_record(fields, self.path, index + 1)


class _RowGroups:
    """The row groups that were read last, of any number of files; for threads of one process."""

    def __init__(self):
        self._groups: collections.OrderedDict[tuple, tuple[Any, int]] = collections.OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple) -> Any | None:
        """Returns a row group as an Arrow table; None if it is not kept."""
        with self._lock:
            if key not in self._groups:
                return None
            self._groups.move_to_end(key)
            return self._groups[key][0]

    def put(self, key: tuple, table: Any) -> None:
        """Keeps a row group; those that were not asked for the longest make room."""
        with self._lock:
            _, before = self._groups.pop(key, (None, 0))
            self._groups[key] = table, table.nbytes
            self._num_bytes += table.nbytes - before
            while len(self._groups) > 1 and self._num_bytes > _CACHE_BYTES:
                _, (_, num_bytes) = self._groups.popitem(last=False)
                self._num_bytes -= num_bytes


class _OpenTable:
    """An open file, from which one thread reads at a time."""

    def __init__(self, path: str):
        import pyarrow.parquet as pq

        # Bytes are copied into Arrow's own memory, not mapped: the file may lie on a network.
        self.file = pq.ParquetFile(path, page_checksum_verification=True)
        self.lock = threading.Lock()


def _row_group(path: str, stamp: Stamp, number: int) -> Any:
    """Returns a row group as an Arrow table."""
    process = os.getpid()
    kept, key = _kept(process), (path, stamp, number)
    table = kept.get(key)
    if table is None:
        opened = _open(path, stamp, process)
        with opened.lock:
            table = kept.get(key)  # another thread may have read it meanwhile
            if table is None:
                table = opened.file.read_row_group(number, use_threads=False)
                kept.put(key, table)
    return table


# The process is part of the keys: Arrow's objects are used only where they were made.
@functools.lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, stamp: Stamp, process: int) -> _OpenTable:
    return _OpenTable(path)


@functools.lru_cache(maxsize=1)
def _kept(process: int) -> _RowGroups:
    return _RowGroups()


def _find(path: str) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a parquet file, or one that was cut off ({_first_line(error)}); fetch it "
            "again"
        ) from None
    trouble = _schema_trouble(schema)
    if trouble:
        raise UserError(f"{path}: {trouble}; {_EXPECTED}")
    if not metadata.num_rows:
        raise UserError(f"{path}: the file holds no records")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max(group.total_byte_size for group in groups)
    if largest > _LARGE_GROUP_BYTES:
        _logger.warning(
            "%s: a row group has %d MiB, and random access reads whole row groups; write the file "
            "with row groups of about 100 rows (row_group_size=100)",
            path,
            largest // 2**20,
        )
    ends = np.cumsum([group.num_rows for group in groups])
    return Found({"group_ends": ends.astype(np.int64)}, sha256_of(path))


def _schema_trouble(schema: Any) -> str:
    """Returns what is wrong with the columns; "" if they make records."""
    import pyarrow.types as types

    names = schema.names
    if len(set(names)) < len(names):
        return f"a column stands twice ({', '.join(names)})"
    if not set(names) & {*_TURNS, *_MEDIA, "caption", "video"}:
        return f"no column that makes a record (found {', '.join(names) or 'none'})"
    for name in names:
        kind = inner = schema.field(name).type
        is_list = types.is_list(kind) or types.is_large_list(kind)
        if is_list:
            inner = kind.value_type
        is_struct, is_null = types.is_struct(inner), types.is_null(kind)
        if name in _TURNS and not (is_null or (is_list and is_struct)):
            return f"column {name!r} is {kind}"
        is_text = types.is_string(inner) or types.is_large_string(inner)
        is_bytes = types.is_binary(inner) or types.is_large_binary(inner)
        if name in _MEDIA and not (is_null or is_struct or is_text or is_bytes):
            return f"column {name!r} is {kind}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
