import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from metamorph_jax.data.sources import index as index_module
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.files import sha256_of
from metamorph_jax.data.sources.index import Found, open_index
from metamorph_jax.errors import UserError
from tests.source_files import write_bytes

NUMBERS = np.arange(1000, dtype=np.int64)


@pytest.fixture
def path(tmp_path):
    return write_bytes(tmp_path / "data.x", "abc")


@pytest.fixture
def find():
    """Finds always the same, and counts how often it was asked."""

    def find(path):
        find.calls += 1
        arrays = {"numbers": NUMBERS, "bytes": np.arange(3, dtype=np.uint8)}
        return Found(arrays, sha256_of(path), "a tail")

    find.calls = 0
    return find


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("mapped_bytes", [0, 2**20])
def test_found_once_and_kept(path, find, monkeypatch, mapped_bytes):
    monkeypatch.setattr(index_module, "_MAPPED_BYTES", mapped_bytes)
    for _ in range(3):
        index = open_index(path, "x 1", find)
        np.testing.assert_array_equal(index["numbers"], NUMBERS)
        assert index["bytes"].tolist() == [0, 1, 2]
        assert index.found.sha256 == sha256_of(path) and index.found.damage == "a tail"
    assert find.calls == 1
    assert is_mapped(index["numbers"]) == (mapped_bytes == 0)
    assert sorted(os.listdir(os.path.dirname(path))) == ["data.x", "data.x.index"]


def test_found_again_when_the_file_or_the_layout_changes(path, find):
    open_index(path, "x 1", find)
    open_index(path, "x 2", find)
    assert find.calls == 2
    os.utime(path, ns=(1, 1))
    open_index(path, "x 2", find)
    assert find.calls == 3
    write_bytes(Path(path), "abcd")
    assert open_index(path, "x 2", find).found.sha256 == sha256_of(path)
    assert find.calls == 4


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "long header", "deep", "no map"])
def test_damaged_index_is_made_again(path, find, damage):
    open_index(path, "x 1", find)
    content = Path(path + ".index").read_bytes()
    header = b"[" * 100_000
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "garbage": b"\xff" * 200,
        "long header": (2**62).to_bytes(8, "little"),
        "deep": len(header).to_bytes(8, "little") + header,
        "no map": (2).to_bytes(8, "little") + b"[]",
    }[damage]
    write_bytes(Path(path + ".index"), damaged)
    np.testing.assert_array_equal(open_index(path, "x 1", find)["numbers"], NUMBERS)
    assert find.calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"offsets": np.array([-5, 15])},
        {"offsets": np.array([0, 2**62])},
        {"offsets": np.array([0])},
        {"lines": np.array([1, 2, 3])},
        {"sizes": np.array([14, 3], np.uint32)},
        {"sizes": np.array([[14], [14]], np.uint32)},
        {"sizes": None},
    ],
)
def test_numbers_that_were_damaged_are_found_again(tmp_path, damage):
    path = write_bytes(tmp_path / "a.jsonl", '{"caption":"a"}\n{"caption":"b"}\n')
    open_source(path)
    kept = path + ".index"
    with safe_open(kept, "np") as file:
        metadata = file.metadata()
    arrays = load_file(kept) | damage
    save_file({name: array for name, array in arrays.items() if array is not None}, kept, metadata)
    assert [record.caption for record in open_source(path)] == ["a", "b"]


def test_shape_that_no_array_has(path, find):
    open_index(path, "x 1", find)
    content = Path(path + ".index").read_bytes().replace(b"[1000]", b"[9**9]")
    assert b"[9**9]" in content
    for shape in (b"[1e99]", b"9" * 6, b'["10"]', b"[9999]"):
        write_bytes(Path(path + ".index"), content.replace(b"[9**9]", shape))
        np.testing.assert_array_equal(open_index(path, "x 1", find)["numbers"], NUMBERS)
    assert find.calls == 5


def test_folder_that_cannot_be_written(path, find, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index_module, "_keep", refuse)
    with caplog.at_level(logging.WARNING):
        index = open_index(path, "x 1", find)
    np.testing.assert_array_equal(index["numbers"], NUMBERS)
    assert f"{path}.index cannot be written (Permission denied)" in caplog.text
    copy = pickle.loads(pickle.dumps(index))  # takes the numbers along
    np.testing.assert_array_equal(copy["numbers"], NUMBERS)
    assert find.calls == 1


def test_failed_writing_leaves_nothing_behind(path, find, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module.os, "fsync", fail)
    assert open_index(path, "x 1", find).is_kept is False
    assert os.listdir(os.path.dirname(path)) == ["data.x"]


def test_copy_of_a_kept_index_is_small_and_checked(path, find):
    index = open_index(path, "x 1", find)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)["numbers"], NUMBERS)
    os.remove(path + ".index")
    with pytest.raises(UserError, match="the index was deleted or changed"):
        pickle.loads(pickled)


def test_file_that_changes_while_it_is_indexed(path):
    def find(path):
        write_bytes(Path(path), "longer")
        return Found({"numbers": NUMBERS}, "0" * 64)

    with pytest.raises(UserError, match="the file was changed while it was read"):
        open_index(path, "x 1", find)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "NUL"])
def test_no_plain_file(tmp_path, find, kind):
    path = str(tmp_path / ("a\0b" if kind == "NUL" else kind))
    if kind == "folder":
        os.mkdir(path)
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError):
        open_index(path, "x 1", find)
    assert find.calls == 0
