"""The members of a tar file, from its headers alone; nothing is unpacked, nothing executed.

The standard library reads the headers. A hostile one may ask for gigabytes or point backwards;
both end the reading, as does the end of a file that was cut off.
"""

import dataclasses
import io
import os
import posixpath
import tarfile
from collections.abc import Iterator

from metamorph_jax.errors import UserError

_MAX_HEADER_BYTES = 2**20
_BLOCK_BYTES = 512
_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        name: without a leading "./".
        offset: of its content, in bytes.
        size: of its content, in bytes.
        trouble: why it is not read; "" if nothing speaks against it.
    """

    name: str
    offset: int
    size: int
    trouble: str


class CutOff(Exception):
    """The headers end too early, or make no sense from here on."""


def read_members(path: str) -> Iterator[Member]:
    """Yields all members but folders, in file order.

    Raises:
        CutOff: behind the last member that can be read, if the file does not end properly.
        UserError: it is no tar file at all.
    """
    size = os.path.getsize(path)
    with _Headers(path) as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")
        except (*_TROUBLE,) as error:
            file.seek(0)
            is_gzip = file.read(2) == _GZIP_MAGIC
            advice = "unpack it with gunzip, for random access" if is_gzip else "fetch it again"
            kind = "a compressed file" if is_gzip else f"no tar file ({error})"
            raise UserError(f"{path}: {kind}; {advice}") from None
        before = -1
        while True:
            try:
                member = archive.next()
            except (*_TROUBLE,) as error:
                raise CutOff(str(error)) from None
            if member is None:
                break
            archive.members.clear()  # a list of all would be large
            if archive.offset <= before or member.size < 0:
                raise CutOff("a header points backwards")
            before = archive.offset
            if member.isdir():
                continue
            yield _describe(member)
            if member.offset_data + member.size > size:
                raise CutOff(f"the file ends inside {member.name!r}")
        file.seek(archive.offset)
        if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise CutOff("no end mark where the next member should begin")


def _describe(member: tarfile.TarInfo) -> Member:
    name = posixpath.normpath(member.name)
    trouble = ""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        trouble = "is a link, a device or the like; only plain files are read"
    elif name.startswith("/") or name == ".." or name.startswith("../"):
        trouble = "leads out of the archive; a member has a relative name without .."
    return Member(name, member.offset_data, member.size, trouble)


class _Headers(io.FileIO):
    """A file of which only small pieces are read."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return super().read(size) or b""


_TROUBLE = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, KeyError)
