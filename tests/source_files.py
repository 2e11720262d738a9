"""Writes data files of every format, and checks what every source promises."""

import concurrent.futures
import io
import json
import multiprocessing
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metamorph_jax.data.records import Record
from metamorph_jax.data.sources import Source
from metamorph_jax.errors import UserError

TURNS = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello."}]
GOOD: dict[str, Any] = {"id": 7, "image": "a.png", "conversations": TURNS}


def png(shade: int = 0) -> bytes:
    """Returns a small image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def write_bytes(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> str:
    return write_bytes(path, "".join(json.dumps(fields) + "\n" for fields in records))


def write_parquet(path: Path, columns: Mapping[str, Any], row_group_size: int = 2) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path, row_group_size=row_group_size)
    return str(path)


def write_tar(path: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> str:
    """Writes members as given: (name, content), or a header for what is no plain file."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return str(path)


def _read_all(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def check_promises(source: Source, survives_fork: bool = True) -> list[Record]:
    """Checks order, places, pickling, threads and forked processes; returns the records."""
    records = _read_all(source)
    assert len(source) == len(records) > 0
    assert list(source) == records
    assert [source[index] for index in reversed(range(len(source)))] == records[::-1]
    assert [source.where(index) for index in range(len(source))] == [r.where for r in records]
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]
    copy = pickle.loads(pickle.dumps(source))
    assert _read_all(copy) == records
    assert copy.fingerprint == source.fingerprint and len(source.fingerprint) == 64
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for read in threads.map(lambda _: _read_all(source), range(8)):
            assert read == records
    in_child = _read_in_child(source)
    if survives_fork:
        assert in_child == records
    else:
        assert isinstance(in_child, UserError) and "forked process" in str(in_child)
    return records


def _read_in_child(source: Source) -> list[Record] | UserError:
    """Returns what a forked process reads, with what the parent has open, or its complaint."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def read() -> None:
        try:
            theirs.send(_read_all(source))
        except UserError as error:
            theirs.send(error)

    child = context.Process(target=read)
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(30) else []
    finally:
        child.join(30)
