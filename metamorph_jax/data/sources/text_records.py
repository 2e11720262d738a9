"""Records that are pieces of one text file; `jsonl.py` and `json_list.py` find where they are."""

import abc
import hashlib

import numpy as np

from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.files import read_range
from metamorph_jax.data.sources.index import Found, open_index
from metamorph_jax.data.sources.json_text import MAX_RECORD_BYTES, decode_json, too_long
from metamorph_jax.errors import UserError

# Bytes of JSON that are white space, and so no record.
IS_BLANK = np.zeros(256, np.bool_)
IS_BLANK[[*b" \t\r\n"]] = True
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextSource(Source):
    """Records that stand in a text file as JSON objects.

    Raises:
        UserError: the file is missing, holds no records, or is not of the format.
    """

    layout: str

    def __init__(self, path: str):
        self.path = path
        self._index = open_index(path, self.layout, self.find)
        if not len(self):
            raise UserError(f"{path}: the file holds no records")
        self.fingerprint = self._index.found.sha256

    @staticmethod
    @abc.abstractmethod
    def find(path: str) -> Found:
        """Returns offset, size and line of every record; see `places`."""

    def __len__(self) -> int:
        return len(self._index["lines"])

    def where(self, index: int) -> str:
        """Returns FILE:LINE."""
        return f"{self.path}:{self._index['lines'][index]}"

    def read(self, index: int) -> Record:
        """Returns one record."""
        line = int(self._index["lines"][index])
        data = self._bytes(index)
        if len(data) > MAX_RECORD_BYTES:
            raise too_long(self.path, line)
        return parse_record(decode_json(data, self.path, line), self.path, line)

    def content_hash(self, index: int) -> str:
        """Returns the SHA-256 of a record's text; of one that is too long, of its beginning."""
        return hashlib.sha256(self._bytes(index)).hexdigest()

    def _bytes(self, index: int) -> bytes:
        """Returns the text of a record; at most one byte more than is read as one."""
        offset, size = int(self._index["offsets"][index]), int(self._index["sizes"][index])
        return read_range(self.path, self._index.stamp, offset, size)


def places(offsets: np.ndarray, sizes: np.ndarray, lines: np.ndarray, sha256: str) -> Found:
    """Returns an index of records.

    Args:
        offsets: byte on which a record starts.
        sizes: its bytes; what is more than is read is not told apart.
        lines: on which it starts, counted from 1.
        sha256: of the file.
    """
    arrays = {
        "offsets": offsets.astype(np.int64),
        "sizes": np.minimum(sizes, MAX_RECORD_BYTES + 1).astype(np.uint32),
        "lines": lines.astype(np.int64),
    }
    return Found(arrays, sha256)
