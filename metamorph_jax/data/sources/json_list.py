"""`.json`: one list of JSON objects, as LLaVA's data sets are published.

Such files have gigabytes, so the list is not decoded: one pass over the bytes finds the commas
between its elements, and an element is decoded only when it is asked for. One that is malformed
in itself is a bad record; a list without an end is a bad file.
"""

import array
import hashlib
import re

import numpy as np

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources.files import read_chunks
from metamorph_jax.data.sources.index import Found
from metamorph_jax.data.sources.json_text import MAX_RECORD_BYTES, decode_json
from metamorph_jax.data.sources.text_records import BYTE_ORDER_MARK, TextSource, places
from metamorph_jax.errors import UserError

_QUOTE, _BACKSLASH, _COMMA, _LIST_BEGIN, _LIST_END, _NEWLINE = b'"\\,[]\n'
_STEP = np.zeros(256, np.int8)  # in depth, by byte
_STEP[[*b"[{"]], _STEP[[*b"]}"]] = 1, -1
_IS_MARK = _STEP != 0
_IS_MARK[_COMMA] = True
_SOLID = re.compile(rb"[^ \t\r\n]")


class JsonListSource(TextSource):
    """The records of a `.json` file that holds one list."""

    layout = "json list 1"

    @staticmethod
    def find(path: str) -> Found:
        """Returns where the elements of the list are."""
        scanner = _ListScanner(path)
        for chunk in read_chunks(path):
            scanner.feed(chunk)
        return scanner.finish()


class _ListScanner:
    """Finds the elements of a list in the pieces of its text, one after the other."""

    def __init__(self, path: str):
        self._path = path
        self._base, self._line = 0, 1  # of the next piece
        self._digest = hashlib.sha256()
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._is_begun = self._is_ended = False
        self._start: tuple[int, int] | None = None  # offset and line of the element being read
        self._elements = array.array("q")  # offset, size and line of each

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece."""
        self._digest.update(chunk)
        self._newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE)
        has_mark = self._base == 0 and chunk.startswith(BYTE_ORDER_MARK)
        position = len(BYTE_ORDER_MARK) if has_mark else 0
        first = None if self._is_begun else _SOLID.search(chunk, position)
        if first and chunk[first.start()] != _LIST_BEGIN:
            raise self._complaint(
                self._line_of(first.start()),
                "a .json file holds one list of records; end its name in .jsonl if it has one "
                "record a line",
            )
        for mark in self._marks(chunk).tolist():
            if self._is_ended:
                break
            if chunk[mark] == _LIST_BEGIN:
                self._is_begun = True
            else:
                self._begin_element(chunk, position, mark)
                self._end_element(chunk[mark], mark)
            position = mark + 1
        self._begin_element(chunk, position, len(chunk))
        self._base += len(chunk)
        self._line += len(self._newlines)

    def _marks(self, chunk: bytes) -> np.ndarray:
        """Returns the places of the list's own brackets and commas."""
        text = b"\\" + chunk if self._is_escaped else chunk
        data = np.frombuffer(text, np.uint8)
        quotes = np.flatnonzero(data == _QUOTE)
        slashes = np.flatnonzero(data == _BACKSLASH)
        # In a run of backslashes, every second one is itself escaped.
        firsts = np.where(np.diff(slashes, prepend=-2) != 1, slashes, 0)
        escaping = slashes[(slashes - np.maximum.accumulate(firsts)) % 2 == 0]
        self._is_escaped = bool(len(escaping)) and int(escaping[-1]) == len(data) - 1
        quotes = np.setdiff1d(quotes, escaping + 1, assume_unique=True)

        marks = np.flatnonzero(_IS_MARK[data])
        marks = marks[(np.searchsorted(quotes, marks) + self._in_string) % 2 == 0]
        self._in_string ^= bool(len(quotes) % 2)
        steps = _STEP[data[marks]]
        depths = self._depth + np.cumsum(steps, dtype=np.int64)
        self._depth = int(depths[-1]) if len(depths) else self._depth
        is_own = np.where(steps == -1, depths == 0, depths == 1)
        return marks[is_own] - (len(text) - len(chunk))

    def _begin_element(self, chunk: bytes, begin: int, end: int) -> None:
        """Notes where the next element begins, if it does so between two places."""
        if not self._is_begun or self._start is not None:
            return
        solid = _SOLID.search(chunk, begin, end)
        if solid and self._is_ended:
            raise self._complaint(
                self._line_of(solid.start()),
                "text after the end of the list; a .json file holds one list, a .jsonl file one "
                "record a line",
            )
        if solid:
            self._start = (self._base + solid.start(), self._line_of(solid.start()))

    def _end_element(self, byte: int, mark: int) -> None:
        end = self._base + mark
        if self._start is not None or byte == _COMMA or len(self._elements):
            offset, line = self._start or (end, self._line_of(mark))  # nothing between two commas
            self._elements.extend((offset, min(end - offset, MAX_RECORD_BYTES + 1), line))
        self._start = None
        self._is_ended = byte == _LIST_END
        if byte not in (_COMMA, _LIST_END):
            raise self._complaint(self._line_of(mark), "a bracket that does not fit")

    def finish(self) -> Found:
        """Returns the elements.

        Raises:
            UserError: the list has no end.
        """
        elements = np.array(self._elements, np.int64).reshape(-1, 3)
        if not self._is_begun:
            raise self._complaint(1, "the file is empty; a .json file holds one list of records")
        if not self._is_ended:
            line = self._start[1] if self._start else self._line
            raise self._complaint(
                line,
                "the list has no end: the file was cut off, or a bracket or a quotation mark is "
                "missing in the record that begins here; fetch the file again, or correct it",
            )
        return places(*elements.T, self._digest.hexdigest())

    def _line_of(self, position: int) -> int:
        return self._line + int(np.searchsorted(self._newlines, position))

    def _complaint(self, line: int, trouble: str) -> UserError:
        """Returns what is wrong with the list, or with its first element that is malformed.

        A missing bracket or quotation mark shows only later, so the elements before are decoded.
        """
        for offset, size, first_line in zip(*[iter(self._elements)] * 3, strict=True):
            with open(self._path, "rb") as file:
                file.seek(offset)
                try:
                    decode_json(file.read(size), self._path, first_line)
                except BadSample as error:
                    return UserError(str(error))
        return UserError(f"{self._path}:{line}: {trouble}")
