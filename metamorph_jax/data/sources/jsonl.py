"""`.jsonl`: one JSON object a line; blank lines are skipped.

The file is looked through once, a megabyte at a time, for where its lines are; a line is decoded
only when it is asked for.
"""

import hashlib

import numpy as np

from metamorph_jax.data.sources.files import read_chunks
from metamorph_jax.data.sources.index import Found
from metamorph_jax.data.sources.text_records import (
    BYTE_ORDER_MARK,
    IS_BLANK,
    TextSource,
    places,
)

_NEWLINE = ord("\n")


class JsonlSource(TextSource):
    """The records of a `.jsonl` file."""

    layout = "jsonl 1"

    @staticmethod
    def find(path: str) -> Found:
        """Returns where the lines are that are not blank."""
        digest = hashlib.sha256()
        table = [np.zeros((3, 0), np.int64)]  # offsets, sizes, lines
        base, line = 0, 1  # of the chunk's first byte
        start, is_record = 0, False  # of the line that the chunk continues
        for chunk in read_chunks(path):
            digest.update(chunk)
            data = np.frombuffer(chunk, np.uint8)
            solid = ~IS_BLANK[data]
            if base == 0 and chunk.startswith(BYTE_ORDER_MARK):
                start = len(BYTE_ORDER_MARK)
                solid[:start] = False
            ends = np.flatnonzero(data == _NEWLINE)
            starts = np.concatenate([[0], ends + 1])
            if starts[-1] == len(data):  # the next line has no byte in this chunk
                has_text = np.append(np.logical_or.reduceat(solid, starts[:-1]), False)
            else:
                has_text = np.logical_or.reduceat(solid, starts)
            has_text[0] |= is_record
            starts = starts + base
            starts[0] = start
            offsets, kept = starts[:-1], has_text[:-1]
            lines = line + np.arange(len(ends))
            table.append(np.stack([offsets, ends + base - offsets, lines])[:, kept])
            base, line = base + len(data), line + len(ends)
            start, is_record = int(starts[-1]), bool(has_text[-1])
        if is_record:  # a last line without its end
            table.append(np.array([[start], [base - start], [line]]))
        offsets, sizes, lines = np.concatenate(table, axis=1)
        return places(offsets, sizes, lines, digest.hexdigest())
