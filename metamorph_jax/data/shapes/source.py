"""`shapes:KIND/SPLIT`, optionally with `?count=N`: the world as a data source without files.

KIND is one of `samples.KINDS`, SPLIT one of `scene.SPLITS`: `train`, `validation` or `heldout`.
Record i is the same whatever the count is, so that a larger count only adds records.
"""

import dataclasses
import functools
import hashlib
import re
from typing import Any

from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.shapes.samples import KINDS, make_sample
from metamorph_jax.data.shapes.scene import SPLITS, Split
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.video import VideoInfo
from metamorph_jax.errors import UserError, nearest

PREFIX = "shapes:"
DEFAULT_COUNTS: dict[Split, int] = {"train": 10_000, "validation": 500, "heldout": 500}
_EXPECTED = "expected shapes:KIND/SPLIT or shapes:KIND/SPLIT?count=N"
_PATTERN = re.compile(r"shapes:(?P<kind>[^/?]*)/(?P<split>[^/?]*)(\?count=(?P<count>[0-9]{1,9}))?")
# The fingerprint covers so many records' bytes: enough to notice another generator or PNG writer.
_NUM_HASHED = 16


@dataclasses.dataclass(frozen=True)
class ShapesPath:
    """What a path names.

    Attributes:
        kind: of `samples.KINDS`.
        split: of `scene.SPLITS`.
        count: records.
    """

    kind: str
    split: Split
    count: int


def parse_path(path: str) -> ShapesPath:
    """Returns what `shapes:KIND/SPLIT?count=N` names.

    Raises:
        UserError: it is not of this form, or there is no such kind or split, or the count is 0.
    """
    match = _PATTERN.fullmatch(path)
    if match is None:
        raise UserError(f"{path}: {_EXPECTED}, such as shapes:image_qa/train?count=5000")
    kind, split = match["kind"], match["split"]
    for word, known in ((kind, list(KINDS)), (split, list(SPLITS))):
        if word not in known:
            near = nearest(word, known)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{path}: there is no {word!r}{guess} among {', '.join(known)}")
    count = DEFAULT_COUNTS[split] if match["count"] is None else int(match["count"])
    if count == 0:
        raise UserError(f"{path}: count=0; at least one record was expected")
    return ShapesPath(kind, split, count)


class ShapesSource(Source):
    """Records of one kind and split, made when they are read.

    Args:
        path: see the module docstring.

    Raises:
        UserError: see `parse_path`.
    """

    def __init__(self, path: str):
        self.path = path
        self._named = parse_path(path)

    def __len__(self) -> int:
        return self._named.count

    def fields(self, index: int) -> dict[str, Any]:
        """Returns a record as the fields that a line of a file would have."""
        return make_sample(self._named.kind, self._named.split, index)

    def read(self, index: int) -> Record:
        """Returns one record."""
        return parse_record(self.fields(index), self.path, index + 1)

    def where(self, index: int) -> str:
        """Returns PATH:NUMBER, counted from 1."""
        return f"{self.path}:{index + 1}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the path's meaning and of some records."""
        digest = hashlib.sha256(repr(self._named).encode())
        for index in range(min(_NUM_HASHED, len(self))):
            digest.update(repr(self.fields(index)).encode())
        return digest.hexdigest()


def no_files(path: str) -> VideoInfo:
    """What `make_conversation` is told of video files: there are none, frames stand in records.

    Raises:
        UserError: always.
    """
    raise UserError(f"{path}: records of shapes name no files")
