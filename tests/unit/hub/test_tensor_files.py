"""Files from strangers: what is read, and what is refused before any of it is believed."""

import json
import os
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from metamorph_jax.errors import UserError
from metamorph_jax.hub.tensor_files import INDEX_FILE, TensorFolder, read_json
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)


def tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "b.weight": rng.normal(size=(7, 2)).astype(BF16),
        "b.bias": rng.normal(size=(4,)).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }


def write(folder, values=None, **options):
    values = tensors() if values is None else values
    lazy = {n: TensorToWrite(v.shape, v.dtype, lambda v=v: v) for n, v in values.items()}
    write_folder(folder, lazy, **options)


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_files_of_the_library_are_read(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors", {"format": "pt"})
    folder = TensorFolder(tmp_path)
    assert folder.specs.keys() == tensors().keys()
    for name, value in tensors().items():
        read = folder.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)
    with pytest.raises(ValueError, match="read-only"):
        folder.read("a.weight")[0] = 1


@pytest.mark.parametrize("limit", [10**9, 70])
def test_what_is_written_the_library_reads(tmp_path, limit):
    from safetensors.numpy import load_file

    seen = []
    write(tmp_path, on_written=seen.append, max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if limit > 100 else 2)
    assert (tmp_path / INDEX_FILE).is_file() == (len(files) > 1)
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert found.keys() == tensors().keys() == set(seen)
    for name, value in tensors().items():
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(TensorFolder(tmp_path).read(name), value)


def test_a_tensor_that_is_not_what_was_announced(tmp_path):
    lie = TensorToWrite((2, 2), np.dtype(np.float32), lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="announced"):
        write_folder(tmp_path, {"x": lie})


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["METAMORPH_TEST_BOMB"],)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "x.safetensors"])
def test_a_pickle_under_any_name_is_not_run(tmp_path, monkeypatch, name):
    trace = tmp_path / "exploded"
    monkeypatch.setenv("METAMORPH_TEST_BOMB", str(trace))
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError) as error:
        TensorFolder(tmp_path)
    assert name in str(error.value)
    assert not trace.exists()
    expected = "pickled weights only" if name.endswith(".bin") else "no intact safetensors file"
    assert expected in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_a_truncated_file(tmp_path, kept):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors is no intact safetensors file"):
        TensorFolder(tmp_path)


def entry(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LYING = {
    "header longer than the file": b"\x00",
    "no JSON": b"{]",
    "a list": [],
    "deep nesting": b"[" * 100_000,
    "an entry that is no object": {"x": 3},
    "no offsets": {"x": {"dtype": "F32", "shape": [2]}},
    "negative offsets": {"x": entry(-8, 0)},
    "offsets past the end": {"x": entry(0, 80, shape=(20,))},
    "a hole": {"x": entry(8, 16)},
    "overlapping tensors": {"x": entry(), "y": entry()},
    "more bytes than the shape needs": {"x": entry(0, 8, shape=(1,))},
    "a shape that is no list": {"x": entry() | {"shape": "2"}},
    "a negative size": {"x": entry(shape=(-2,))},
    "a boolean size": {"x": entry(0, 8, shape=(True, 2))},
    "more dimensions than arrays have": {"x": entry(0, 8, "F64", [1] * 70)},
    "a size that is no array's": {"x": entry(), "y": entry(8, 8, shape=(0, 2**70))},
    "sizes that together are no array's": {"x": entry(), "y": entry(8, 8, shape=(0, 2**40, 2**40))},
    "sizes that overflow": {"x": entry(), "y": entry(8, 8, shape=(0, 2**62, 2**62))},
    "too many bytes in the file": {},
}


@pytest.mark.parametrize("lie", LYING)
def test_a_lying_header(tmp_path, lie):
    path = tmp_path / "model.safetensors"
    raw_file(path, LYING[lie], bytes(8))
    if lie == "header longer than the file":
        path.write_bytes((2**40).to_bytes(8, "little") + bytes(8))
    with pytest.raises(UserError, match="no intact safetensors file"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", ["F32"], None])
def test_an_unknown_dtype_is_named(tmp_path, dtype):
    raw_file(tmp_path / "model.safetensors", {"x": entry(0, 8, dtype, (8,))}, bytes(8))
    with pytest.raises(UserError, match=rf"x is of dtype {re.escape(repr(dtype))}; readable are"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    "place",
    ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 3, "m.bin"],
)
def test_an_index_stays_in_its_folder(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "other")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a.weight": place}}))
    with pytest.raises(UserError, match=r"a\.weight is said to be in"):
        TensorFolder(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, []])
def test_an_index_of_nothing(tmp_path, index):
    write(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json"):
        TensorFolder(tmp_path)


def test_an_index_that_disagrees_with_its_files(tmp_path):
    write(tmp_path, max_shard_bytes=70)
    path = tmp_path / INDEX_FILE
    places = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(places.values()))
    unlisted = {name: file for name, file in places.items() if name != "b.bias"}
    for wrong, message in [
        (places | {"c.weight": first}, f"c.weight is not in {first}"),
        (places | {"a.weight": second}, f"a.weight is not in {second}"),
        (unlisted | {"b.bias": first}, f"b.bias is not in {first}"),
        (unlisted, "does not know b.bias"),
        ({"a.weight": "gone.safetensors"}, "gone.safetensors is missing"),
        ({"a.weight": "long" * 99 + ".safetensors"}, "long.safetensors is missing"),
    ]:
        path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(UserError) as error:
            TensorFolder(tmp_path)
        assert re.search(message, str(error.value)), str(error.value)


def test_one_tensor_in_two_files(tmp_path):
    for name in ("one", "two"):
        save_file({"x": np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"x is both in .*one.* and in .*two"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("beside", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_what_lies_beside_the_whole_file_is_not_read(tmp_path, beside):
    write(tmp_path)
    save_file({"a.weight": np.zeros(2, np.float32), "lora": np.zeros(1)}, tmp_path / beside)
    folder = TensorFolder(tmp_path)
    assert folder.specs.keys() == tensors().keys()
    np.testing.assert_array_equal(folder.read("a.weight"), tensors()["a.weight"])
    (tmp_path / "model.safetensors").unlink()
    assert TensorFolder(tmp_path).specs.keys() == {"a.weight", "lora"}


def test_no_folder_and_nothing_in_it(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        TensorFolder(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no .safetensors file there \(found notes.txt\)"):
        TensorFolder(tmp_path)


def test_a_device_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is no plain file"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "nul\x00"])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_json(tmp_path / "config.json")
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "other.json")
