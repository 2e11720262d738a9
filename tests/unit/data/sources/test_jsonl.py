import json
import os

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources import files, open_source
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, check_promises, write_bytes, write_lines

LINE = json.dumps(GOOD)


def test_lines_in_order(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD | {"id": n} for n in range(50)])
    records = check_promises(open_source(path))
    assert [record.extra["id"] for record in records] == list(range(50))
    assert records[49].where == f"{path}:50"
    assert records[0].images == ("a.png",)


@pytest.mark.parametrize("chunk_bytes", [3, 4, 7, 100, 2**20])
def test_lines_are_found_wherever_the_file_is_cut_into_pieces(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(files, "_CHUNK_BYTES", chunk_bytes)
    text = f"\ufeff\n{LINE}\r\n\n \t \r\n{LINE}\n   {LINE}  \n\n{LINE}"
    path = write_bytes(tmp_path / "a.jsonl", text)
    source = open_source(path)
    assert [record.line for record in source] == [2, 5, 6, 8]
    assert all(record.extra == {"id": 7} for record in source)


def test_byte_order_mark_before_the_first_record(tmp_path):
    source = open_source(write_bytes(tmp_path / "a.jsonl", f"\ufeff{LINE}\n\ufeff{LINE}\n"))
    assert [record.line for record in source] == [1, 2]


def test_line_over_the_limit_is_not_read(tmp_path, monkeypatch):
    text = f"{LINE}\n{' ' * 300}{LINE}\n{LINE}\n"
    for module in ("json_text", "text_records"):
        monkeypatch.setattr(f"metamorph_jax.data.sources.{module}.MAX_RECORD_BYTES", 200)
    source = open_source(write_bytes(tmp_path / "a.jsonl", text))
    assert source[0] is not None and source[2].line == 3
    with pytest.raises(BadSample, match=r"a\.jsonl:2: the record has more than 200 bytes"):
        source[1]


def test_file_that_changes_under_way(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD] * 3)
    source = open_source(path)
    assert source[0].line == 1
    with open(path, "a") as file:
        file.write("x")
    with pytest.raises(UserError, match=r"a\.jsonl: the file was changed while it was read"):
        source[1]


def test_file_that_is_replaced_under_way(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD] * 3)
    source = open_source(path)
    first = source[0]
    other = write_lines(tmp_path / "b.jsonl", [GOOD | {"id": 8}] * 3)
    os.replace(other, path)
    assert source[0] == first  # what was opened stays readable
    assert open_source(path)[0].extra == {"id": 8}


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_empty_file(tmp_path, text):
    with pytest.raises(UserError, match=r"a\.jsonl: the file holds no records"):
        open_source(write_bytes(tmp_path / "a.jsonl", text))
