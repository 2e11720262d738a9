"""Many files behind one source: those that fit a pattern, in the order of their names."""

import bisect
import glob
import hashlib
import itertools
import os
from collections.abc import Callable

from metamorph_jax.data.records import Record
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.index import ENDING
from metamorph_jax.errors import UserError

WILDCARDS = "*?["


def is_pattern(path: str) -> bool:
    """Whether a path stands for many files; one that is there is itself, whatever its name."""
    return bool(set(path) & set(WILDCARDS)) and not os.path.exists(path)


def find_files(path: str) -> list[str]:
    """Returns the files that a path or a pattern names, in the order of their names."""
    if not is_pattern(path):
        return [path] if os.path.exists(path) else []
    names = sorted(glob.glob(path, recursive=True))
    return [name for name in names if not name.endswith(ENDING)]


class ShardedSource(Source):
    """The records of several files, one file after the other.

    Args:
        pattern: with *, ? or [...]; `**` stands for any folders.
        open_file: opens one of them.

    Raises:
        UserError: no file fits, or one of them cannot be used. A missing shard would move all
            records behind it, so nothing is left out silently.
    """

    def __init__(self, pattern: str, open_file: Callable[[str], Source]):
        self.path = pattern
        names = find_files(pattern)
        if not names:
            raise UserError(
                f"{pattern}: no file fits this pattern; check `path` of the data source"
            )
        self._shards = [open_file(name) for name in names]
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))
        together = "\n".join(shard.fingerprint for shard in self._shards)
        self.fingerprint = hashlib.sha256(together.encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        """Returns a shard, and the number of the record in it."""
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        return shard, index - self._ends[number] + len(shard)

    def where(self, index: int) -> str:
        """Returns FILE:LINE within the shard."""
        shard, within = self._locate(index)
        return shard.where(within)

    def content_hash(self, index: int) -> str:
        """Returns the SHA-256 of a record as its shard knows it."""
        shard, within = self._locate(index)
        return shard.content_hash(within)

    def read(self, index: int) -> Record:
        """Returns one record."""
        shard, within = self._locate(index)
        return shard.read(within)
