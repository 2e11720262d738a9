"""`.tar`: WebDataset shards, uncompressed, with random access.

Members whose names agree up to the first dot are one record: `.json` holds its fields, `.txt` its
caption, and every `.jpg`, `.jpeg`, `.png`, `.webp`, `.gif` or `.bmp` is an image, in the order of
names. Everything else is ignored; nothing is ever unpickled or unpacked.
"""

import collections
import dataclasses
import logging
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from metamorph_jax.data.faults import BadSample, Reason
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.files import read_range, sha256_of
from metamorph_jax.data.sources.index import Found, open_index
from metamorph_jax.data.sources.json_text import MAX_RECORD_BYTES, decode_json
from metamorph_jax.data.sources.tar_members import CutOff, Member, read_members
from metamorph_jax.errors import UserError

MAX_IMAGE_BYTES = 256 * 2**20
_FIELDS, _CAPTION, _IMAGE = range(3)
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
_logger = logging.getLogger(__name__)


class WebDatasetSource(Source):
    """The records of one tar shard.

    Of a shard that was cut off, the whole records are used; the first that is not whole is a bad
    record, so that the loss is counted, and a warning is logged.

    Raises:
        UserError: the file is missing, no tar, compressed, or holds no records.
    """

    def __init__(self, path: str):
        self.path = path
        self._index = open_index(path, "webdataset 1", _find)
        if not len(self):
            raise UserError(
                f"{path}: the file holds no records; expected members such as 0001.jpg with "
                "0001.json or 0001.txt"
            )
        self.fingerprint = self._index.found.sha256
        if self._index.found.damage:
            _logger.warning(
                "%s: the shard is cut off (%s); %d records before that are used; fetch it again",
                path,
                self._index.found.damage,
                len(self) - 1,
            )

    def __len__(self) -> int:
        return len(self._index["member_ends"])

    def where(self, index: int) -> str:
        """Returns FILE:NUMBER, counted from 1."""
        return f"{self.path}:{index + 1}"

    def read(self, index: int) -> Record:
        """Returns one record."""
        key = self._text("keys", index)
        trouble = self._text("troubles", index)
        if trouble:
            reason, _, message = trouble.partition(" ")
            raise self._bad(reason, index, message)
        ends = self._index["member_ends"]
        members = range(int(ends[index - 1]) if index else 0, int(ends[index]))
        fields: Any = {}
        images = []
        caption = None
        for member in members:
            kind = int(self._index["kinds"][member])
            data = self._content(index, key, member, kind)
            if kind == _FIELDS:
                fields = decode_json(data, self.path, index + 1)
            elif kind == _CAPTION:
                caption = self._decode_caption(data, index, key)
            else:
                images.append(ImageBytes(data, f"{key} image[{len(images)}]"))
        if isinstance(fields, dict):
            if images:  # the members, not the paths that they were made from
                fields = {name: fields[name] for name in fields if name not in ("image", "images")}
                fields["images"] = images
            if caption is not None:
                fields["caption"] = caption
            fields.setdefault("id", key)
        return parse_record(fields, self.path, index + 1)

    def _content(self, index: int, key: str, member: int, kind: int) -> bytes:
        size, limit = int(self._index["sizes"][member]), MAX_RECORD_BYTES
        reason: Reason = "malformed_record"
        if kind == _IMAGE:
            reason, limit = "too_large_media", MAX_IMAGE_BYTES
        if size > limit:
            raise self._bad(
                reason, index, f"a member of {key!r} has {size} bytes; at most {limit} are read"
            )
        return read_range(self.path, self._index.stamp, int(self._index["offsets"][member]), size)

    def _decode_caption(self, data: bytes, index: int, key: str) -> str:
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            message = f"{key}.txt is not UTF-8; save it as UTF-8"
            raise self._bad("malformed_record", index, message) from None

    def _bad(self, reason: Reason, index: int, message: str) -> BadSample:
        return BadSample(reason, f"{self.where(index)}: {message}")

    def _text(self, name: str, index: int) -> str:
        """Returns one of the texts that the index keeps end to end."""
        ends = self._index[f"{name}_ends"]
        begin = int(ends[index - 1]) if index else 0
        return self._index[name][begin : int(ends[index])].tobytes().decode("utf-8", "replace")


@dataclasses.dataclass
class _Group:
    """Members of one record."""

    members: list[tuple[int, str, int, int]] = dataclasses.field(default_factory=list)
    trouble: str = ""

    def add(self, kind: int, member: Member) -> None:
        """Takes a member, or notes what is wrong with it."""
        if any(member.name == name for _, name, _, _ in self.members):
            self.trouble = f"malformed_record the archive holds {member.name!r} twice; remove one"
        if member.trouble:
            self.trouble = f"forbidden_path member {member.name!r} {member.trouble}"
        self.members.append((kind, member.name, member.offset, member.size))


def _find(path: str) -> Found:
    groups: dict[str, _Group] = collections.defaultdict(_Group)
    last, damage = "", ""
    try:
        for member in read_members(path):
            folder, name = posixpath.split(member.name)
            stem, _, ending = name.partition(".")
            kind = _kind(ending)
            if stem and kind is not None:  # names with a leading dot are an operating system's
                last = posixpath.join(folder, stem)
                groups[last].add(kind, member)
    except CutOff as error:
        damage = str(error)
        groups[last].trouble = (
            f"malformed_record the shard is cut off in or behind this record ({damage}); fetch it "
            "again"
        )
    members = [sorted(group.members) for group in groups.values()]
    flat = [member for record in members for member in record]
    troubles = [group.trouble for group in groups.values()]
    arrays = {
        "kinds": np.array([kind for kind, _, _, _ in flat], np.uint8),
        "offsets": np.array([offset for _, _, offset, _ in flat], np.int64),
        "sizes": np.array([size for _, _, _, size in flat], np.int64),
        "member_ends": np.cumsum([len(record) for record in members], dtype=np.int64),
        **_end_to_end("keys", list(groups)),
        **_end_to_end("troubles", troubles),
    }
    return Found(arrays, sha256_of(path), damage)


def _kind(ending: str) -> int | None:
    """Returns what a member is, by its name behind the first dot."""
    ending = ending.lower()
    if "." + ending.rpartition(".")[2] in _IMAGE_ENDINGS:
        return _IMAGE
    return {"json": _FIELDS, "txt": _CAPTION}.get(ending)


def _end_to_end(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_ends": np.cumsum([len(text) for text in encoded], dtype=np.int64),
    }
