"""D14: hostile and broken tar shards. Nothing is unpacked, executed, or taken from elsewhere.

Each case stands between two good records, which stay readable; the case is ignored, is one bad
record, or, where it is said, makes the file unusable.
"""

import gzip
import io
import json
import logging
import os
import pickle
import tarfile

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources import open_source
from metamorph_jax.errors import UserError
from tests.source_files import png, write_bytes, write_tar

FIRST = [("a.png", png(1)), ("a.txt", b"first")]
LAST = [("z.png", png(2)), ("z.txt", b"last")]
PICKLE_RAN = "D14_PICKLE_RAN"


class Evil:
    def __reduce__(self):
        return os.putenv, (PICKLE_RAN, "1")


def header(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member


def with_pax(name: str, fields: dict[str, str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.pax_headers = fields
    return member


IGNORED = {
    "pickle": [("m.pkl", pickle.dumps(Evil()))],
    "pickle by another name": [("m.pickle", pickle.dumps(Evil())), ("m.pyd", b"x")],
    "torch file": [("m.pth", pickle.dumps(Evil())), ("m.pt", b"x")],
    "pickle beside a good record": [("a.pkl", pickle.dumps(Evil()))],
    "program": [("m.py", b"raise SystemExit"), ("m.sh", b"exit 1")],
    "folder": [header("m", tarfile.DIRTYPE), header("m.png", tarfile.DIRTYPE)],
    "no ending": [("m", b"x")],
    "hidden file": [("._a.png", b"resource fork"), (".txt", b"x")],
    "array file": [("m.npy", b"\x93NUMPY"), ("m.npz", b"x")],
}

BAD = {
    "parent folder": ([("../m.txt", b"x")], "forbidden_path", "leads out of the archive"),
    "parent folder inside": ([("x/../../m.txt", b"x")], "forbidden_path", "leads out of"),
    "absolute name": ([("/etc/m.txt", b"x")], "forbidden_path", "leads out of the archive"),
    "symbolic link": (
        [header("m.txt", tarfile.SYMTYPE, "/etc/passwd")],
        "forbidden_path",
        "'m.txt' is a link",
    ),
    "hard link": ([header("m.txt", tarfile.LNKTYPE, "a.txt")], "forbidden_path", "is a link"),
    "device": ([header("m.png", tarfile.CHRTYPE)], "forbidden_path", "is a link, a device"),
    "pipe": ([header("m.png", tarfile.FIFOTYPE)], "forbidden_path", "is a link, a device"),
    "link beside a text": (
        [header("m.png", tarfile.SYMTYPE, "a.png"), ("m.txt", b"x")],
        "forbidden_path",
        "'m.png' is a link",
    ),
    "member twice": ([("m.txt", b"x"), ("m.txt", b"y")], "malformed_record", "'m.txt' twice"),
    "member twice by name": ([("m.txt", b"x"), ("./m.txt", b"y")], "malformed_record", "twice"),
    "no JSON": ([("m.json", b"{")], "malformed_record", "malformed JSON"),
    "JSON list": ([("m.json", b"[]"), ("m.png", png())], "malformed_record", "an empty list"),
    "JSON of nothing": ([("m.json", b"{}")], "malformed_record", "'conversations' is missing"),
    "text that is not UTF-8": ([("m.txt", b"\xff")], "malformed_record", "m.txt is not UTF-8"),
    "image of no bytes": ([("m.png", b""), ("m.txt", b"x")], "unreadable_media", "no bytes"),
    "strange file type": ([header("m.txt", b"Q", size=0)], "forbidden_path", "is a link, a dev"),
}


def check_neighbours(source, last: int) -> None:
    assert (source[0].caption, source[0].images[0].data) == ("first", png(1))
    assert (source[last].caption, source[last].images[0].data) == ("last", png(2))
    assert PICKLE_RAN not in os.environ


@pytest.mark.parametrize("name", IGNORED)
def test_d14_ignored(tmp_path, name):
    source = open_source(write_tar(tmp_path / "a.tar", [*FIRST, *IGNORED[name], *LAST]))
    assert len(source) == 2
    check_neighbours(source, 1)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.index"]


@pytest.mark.parametrize("name", BAD)
def test_d14_bad_record(tmp_path, name):
    members, reason, message = BAD[name]
    path = write_tar(tmp_path / "a.tar", [*FIRST, *members, *LAST])
    source = open_source(path)
    assert len(source) == 3
    with pytest.raises(BadSample) as caught:
        source[1]
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    check_neighbours(source, 2)


def test_d14_half_of_a_pair(tmp_path):
    """An image without words, or words without an image, is for the kind of the source to judge."""
    source = open_source(write_tar(tmp_path / "a.tar", [*FIRST, ("m.png", png(3)), *LAST]))
    assert source[1].images[0].data == png(3) and source[1].caption is None
    check_neighbours(source, 2)


def truncations():
    path = io.BytesIO()
    with tarfile.open(fileobj=path, mode="w") as archive:
        for name, content in [*FIRST, ("m.png", b"x" * 2000), ("m.txt", b"middle"), *LAST]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.getvalue()


WHOLE = truncations()
M_PNG = 4 * 512  # two members with their headers come before
M_TXT = M_PNG + 512 + 4 * 512


@pytest.mark.parametrize(
    ("end", "num_good"),
    [
        (100, None),  # inside the first header
        (600, 0),
        (M_PNG, 0),  # between two records: the end mark is missing, so the last one is not sure
        (M_PNG + 100, 0),
        (M_PNG + 512 + 100, 1),
        (M_TXT, 1),  # "m" looks whole, but its text is gone
        (M_TXT + 100, 1),
        (M_TXT + 515, 1),
    ],
)
def test_d14_shard_that_is_cut_off(tmp_path, caplog, end, num_good):
    path = write_bytes(tmp_path / "a.tar", WHOLE[:end])
    if num_good is None:
        with pytest.raises(UserError, match=r"a\.tar: no tar file"):
            open_source(path)
        return
    with caplog.at_level(logging.WARNING):
        source = open_source(path)
    assert f"{num_good} records before that are used" in caplog.text
    assert len(source) == num_good + 1
    if num_good:
        assert source[0].caption == "first"
    with pytest.raises(BadSample, match="the shard is cut off in or behind this record"):
        source[num_good]
    assert open_source(path).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("place", "what"),
    [(M_PNG, b"\xff" * 512), (M_PNG + 124, b"\xff" * 12), (M_PNG + 148, b"zzzzzzzz")],
    ids=["garbage", "negative size", "wrong checksum"],
)
def test_d14_damaged_header(tmp_path, place, what):
    content = bytearray(WHOLE)
    content[place : place + len(what)] = what
    source = open_source(write_bytes(tmp_path / "a.tar", bytes(content)))
    assert len(source) == 1
    with pytest.raises(BadSample, match="cut off"):
        source[0]


@pytest.mark.parametrize(
    ("fields", "num_good"),
    [
        ({"size": "-512"}, 0),  # nothing behind the last whole record can be trusted, nor it
        ({"size": "99999999999999"}, 1),
        ({"size": "x"}, 1),
        ({"GNU.sparse.size": "10"}, 1),
    ],
)
def test_d14_lying_extended_header(tmp_path, fields, num_good):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in FIRST:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.addfile(with_pax("m.txt", fields))
    source = open_source(path)
    assert len(source) == num_good + 1
    if num_good:
        assert source[0].caption == "first"
    with pytest.raises(BadSample):
        source[num_good]


def test_d14_compressed_and_cut_off(tmp_path):
    for name in ("a.tar", "b.tar.gz"):
        path = write_bytes(tmp_path / name, gzip.compress(WHOLE)[:-100])
        with pytest.raises(UserError, match="unpack"):
            open_source(path)


def test_d14_extended_header_of_gigabytes(tmp_path):
    """The file is sparse: the header promises 4 GiB of names, which are not read."""
    path = tmp_path / "a.tar"
    member = header("x", tarfile.XHDTYPE, size=4 * 2**30)
    with open(path, "wb") as file:
        file.write(WHOLE[:M_PNG] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2**21))
    source = open_source(path)
    with pytest.raises(BadSample, match="a header asks for 4294967296 bytes"):
        source[0]


def test_d14_many_members(tmp_path):
    members = [(f"{n:06d}.json", json.dumps({"caption": f"{n}"}).encode()) for n in range(20_000)]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert len(source) == 20_000
    assert [source[n].caption for n in (0, 9_999, 19_999)] == ["0", "9999", "19999"]
