"""What every format offers: records by number.

`__init__.py` chooses the format. A source that cannot be used as a whole raises a plain UserError
when it is opened; one bad record raises BadSample when it is read, and the others stay readable.
"""

import abc
from collections.abc import Iterator

from metamorph_jax.data.records import Record


class Source(abc.ABC):
    """Records by number, in file order; nothing is held in memory but where they are.

    Threads may share one. A pickled copy takes the path and the index along, never an open file. A
    forked process may go on using what its parent opened; the two formats whose library does not
    bear it say so.

    Attributes:
        path: as the recipe names it.
        fingerprint: SHA-256 that tells whether the content is the same as in another run.
    """

    path: str
    fingerprint: str

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> Record:
        """Returns one record; like `source[index]`, for an index that is known to be in range."""

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """Returns FILE:LINE of a record: the line it starts on, or its number, counted from 1."""

    def content_hash(self, index: int) -> str:
        """Returns the SHA-256 of what stands in the file for a record; empty if it has no bytes."""
        del index
        return ""

    def __getitem__(self, index: int) -> Record:
        """Returns one record.

        Raises:
            BadSample: this record cannot be used; the message begins with its FILE:LINE.
            UserError: the file is not the one that was opened any more.
            IndexError: there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        return self.read(int(index))

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self.read(index)
