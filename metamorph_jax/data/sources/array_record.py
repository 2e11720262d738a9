"""`.array_record`: Google's container with random access; each record is one JSON object.

The objects are those of a `.jsonl` file. Images may stand in them as {"bytes_b64": "..."}, in
base64. `write_array_record` makes such files.
"""

import base64
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.files import Stamp, changed, find_file, sha256_of
from metamorph_jax.data.sources.index import Found, open_index
from metamorph_jax.data.sources.json_text import decode_json
from metamorph_jax.errors import UserError

_OPEN_READERS = 64
_readers: dict[str, int] = {}  # the process that reads


class ArrayRecordSource(Source):
    """The records of one ArrayRecord file.

    A file that was cut off has lost its own index, so none of it can be used.

    Raises:
        UserError: the file is missing, damaged, empty or of another format.
    """

    def __init__(self, path: str):
        self.path = path
        self._index = open_index(path, "array_record 1", _find)
        self.fingerprint = self._index.found.sha256

    def __len__(self) -> int:
        return int(self._index["count"][0])

    def where(self, index: int) -> str:
        """Returns FILE:NUMBER, counted from 1."""
        return f"{self.path}:{index + 1}"

    def read(self, index: int) -> Record:
        """Returns one record."""
        stamp = self._index.stamp
        if find_file(self.path) != stamp:
            raise changed(self.path)
        try:
            (data,) = _open(self.path, stamp, os.getpid()).read([index])
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadSample(
                "malformed_record",
                f"{self.where(index)}: the record is damaged ({error}); fetch the file again",
            ) from None
        return parse_record(decode_json(data, self.path, index + 1), self.path, index + 1)


def write_array_record(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records that `open_source` reads; returns their number.

    Args:
        path: of the new file, ending in `.array_record`.
        records: the fields of each, as in a `.jsonl` file; bytes and `ImageBytes` are written in
            base64.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = Path(f"{path}.partial")
    writer, count = ArrayRecordWriter(str(partial), "group_size:1"), 0
    try:
        for fields in records:
            writer.write(json.dumps(dict(fields), default=_as_base64).encode())
            count += 1
    finally:
        writer.close()
    partial.replace(path)
    return count


def check_not_forked(path: str) -> None:
    """Refuses to read in a process that was forked from one that has read ArrayRecord files.

    The library (0.8.6) then crashes or hangs as soon as the child has a thread of its own.

    Raises:
        UserError: this is such a process.
    """
    _readers.setdefault("process", os.getpid())
    if _readers["process"] != os.getpid():
        raise UserError(
            f"{path}: the array_record library cannot be used in a forked process; start worker "
            "processes by the method 'spawn'"
        )


def _as_base64(value: Any) -> dict[str, str]:
    data = value.data if isinstance(value, ImageBytes) else value
    if not isinstance(data, bytes):
        raise TypeError(f"a field holds {type(value).__name__}; JSON has no such thing")
    return {"bytes_b64": base64.b64encode(data).decode()}


def _find(path: str) -> Found:
    from array_record.python.array_record_module import ArrayRecordReader

    check_not_forked(path)
    reader = ArrayRecordReader(path)
    count = reader.num_records()
    if not reader.ok():  # closing it would raise
        raise UserError(
            f"{path}: not an ArrayRecord file, or one that was cut off; fetch it again, or write "
            "it with write_array_record"
        )
    reader.close()
    if not count:
        raise UserError(f"{path}: the file holds no records")
    return Found({"count": np.array([count], np.int64)}, sha256_of(path))


# The process is part of the key: a reader is used only by the process that opened it.
@functools.lru_cache(maxsize=_OPEN_READERS)
def _open(path: str, stamp: Stamp, process: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    check_not_forked(path)
    options = "readahead_buffer_size:0,max_parallelism:0"
    return ArrayRecordReader(path, options, file_reader_buffer_size=2**15)
