"""Features on disk: what is written comes back bit for bit, in place, or not at all."""

import concurrent.futures
import hashlib
import os
import pickle
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from metamorph_jax.data import feature_store
from metamorph_jax.data.feature_store import FeatureStore, FeatureWriter
from metamorph_jax.errors import UserError

SHAPE = (4, 6)
ENCODER = "e" * 64


def key(number):
    return hashlib.sha256(b"%d" % number).digest()


def features(number, dtype="float32"):
    values = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32) if dtype == "bfloat16" else values


def writer(folder, dtype="float32", encoder=ENCODER):
    return FeatureWriter(folder, encoder, dtype, SHAPE)


def write(folder, numbers, dtype="float32"):
    with writer(folder, dtype) as out:
        for number in numbers:
            out.add(key(number), features(number, dtype))
    return FeatureStore(folder)


def shards(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_store, "MAX_SHARD_BYTES", 3 * 4 * 24)  # three images


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_come_back_bit_for_bit(tmp_path, small_shards, dtype):
    store = write(tmp_path, range(20), dtype)
    assert (len(store), store.fingerprint, store.shape) == (20, ENCODER, SHAPE)
    assert store.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    assert len(shards(tmp_path)) == (4 if dtype == "bfloat16" else 7)
    for number in np.random.default_rng(0).permutation(20):
        found = store.get(key(number))
        assert found.dtype == store.dtype
        np.testing.assert_array_equal(found.astype(np.float32), features(number, dtype))
    assert store.get(key(20)) is None
    assert key(3) in store and key(20) not in store
    assert store.keys() == {key(number) for number in range(20)}


def test_features_are_read_in_place_and_cannot_be_written(tmp_path):
    store = write(tmp_path, range(3))
    first, second = store.get(key(1)), store.get(key(1))
    assert np.shares_memory(first, second) and not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    del store
    np.testing.assert_array_equal(first, features(1))  # the mapping lives as long as it is used


def test_files_are_plain_safetensors(tmp_path):
    write(tmp_path, [7, 8], "bfloat16")
    (name,) = shards(tmp_path)
    tensors = load_file(tmp_path / name)
    assert {n: (t.dtype.name, t.shape) for n, t in tensors.items()} == {
        "features": ("bfloat16", (2, *SHAPE)),
        "keys": ("uint8", (2, 32)),
        "checksums": ("uint32", (2,)),
    }
    np.testing.assert_array_equal(
        tensors["features"][1].astype(np.float32), features(8, "bfloat16")
    )


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    with writer(tmp_path) as out:
        for number in range(5):
            out.add(b"same 8 b" + bytes([number] * 24), features(number))
    store = FeatureStore(tmp_path)
    for number in range(5):
        found = store.get(b"same 8 b" + bytes([number] * 24))
        np.testing.assert_array_equal(found, features(number))
    assert store.get(b"same 8 b" + bytes([5] * 24)) is None


def test_what_is_there_stays_and_is_not_written_twice(tmp_path):
    write(tmp_path, range(3))
    with writer(tmp_path) as out:
        assert len(out) == 3 and key(0) in out and key(3) not in out
        out.add(key(0), features(9))
    assert len(shards(tmp_path)) == 1
    store = write(tmp_path, range(5))
    assert len(store) == 5
    np.testing.assert_array_equal(store.get(key(0)), features(0))


def test_an_error_loses_nothing_that_was_added(tmp_path):
    with pytest.raises(KeyError), writer(tmp_path) as out:
        out.add(key(0), features(0))
        raise KeyError
    assert key(0) in FeatureStore(tmp_path)


def test_a_slow_encoder_writes_now_and_then(tmp_path, monkeypatch):
    out = writer(tmp_path)
    out.add(key(0), features(0))
    monkeypatch.setattr(feature_store, "MAX_SHARD_SECS", 0.0)
    out.add(key(1), features(1))
    assert len(FeatureStore(tmp_path)) == 2


def test_a_killed_writer_goes_on_where_it_stopped(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
import hashlib, time, numpy as np
from metamorph_jax.data import feature_store
feature_store.MAX_SHARD_BYTES = 4 * 24 * 2
out = feature_store.FeatureWriter({str(tmp_path)!r}, "e" * 64, "float32", (4, 6))
for number in range(5):
    values = np.random.default_rng(number).normal(size=(4, 6)).astype(np.float32)
    out.add(hashlib.sha256(b"%d" % number).digest(), values)
print("five", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"five\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "0123456789abcdef.safetensors.partial").write_bytes(b"half of a file")
    with writer(tmp_path) as out:
        assert len(out) == 4  # two whole files; the fifth image was in memory
        out.add(key(4), features(4))
    store = FeatureStore(tmp_path)
    for number in range(5):
        np.testing.assert_array_equal(store.get(key(number)), features(number))
    assert not [name for name in shards(tmp_path) if name.endswith(".partial")]


def test_copies_threads_and_forked_processes_read_alike(tmp_path, small_shards):
    store = pickle.loads(pickle.dumps(write(tmp_path, range(12))))
    numbers = list(range(12)) * 20
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: store.get(key(number)).copy(), numbers))
    for number, values in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(values, features(number))
    code = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
import hashlib, os
from metamorph_jax.data.feature_store import FeatureStore
store = FeatureStore({str(tmp_path)!r})
before = store.get(hashlib.sha256(b"1").digest()).sum()  # some files are mapped, some are not
if os.fork() == 0:
    found = [store.get(hashlib.sha256(b"%d" % n).digest()).sum() for n in range(12)]
    os._exit(0 if found[1] == before else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def damage(path, offset, value=b"\xff\x00\xff\x00"):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("size", [0, 5, 8, 60, -1, -100])
def test_a_truncated_file_is_named(tmp_path, size):
    write(tmp_path, range(8))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{path.name}: .*delete it, then .*cache_features"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("header", [b"not JSON", b"[]", b"{}", b'{"features": {}}'])
def test_another_file_is_named(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"a\.safetensors: its header cannot be read"):
        FeatureStore(tmp_path)


def test_damaged_features_are_found_when_they_are_read(tmp_path):
    write(tmp_path, range(8))
    (path,) = tmp_path.iterdir()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    place = path.read_bytes().index(features(5).tobytes())
    assert place > length
    damage(path, place + 40)
    store = FeatureStore(tmp_path)
    np.testing.assert_array_equal(store.get(key(4)), features(4))
    with pytest.raises(UserError, match=rf"{path.name}: the features of image 5 are not what was"):
        store.get(key(5))


def test_a_file_that_shrinks_later_does_not_end_the_process(tmp_path):
    store = write(tmp_path, range(8))
    (path,) = tmp_path.iterdir()
    os.truncate(path, 100)
    with pytest.raises(UserError, match="has changed since it was opened"):
        store.get(key(0))


def test_encoders_are_kept_apart(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(UserError) as error:
        writer(tmp_path, encoder="f" * 64)
    assert "the cache was made by another encoder (eeeeeeeeeeee, this one is ffffffffffff)" in str(
        error.value
    )
    assert "run cache_features again" in str(error.value)
    with writer(tmp_path / "other", encoder="f" * 64) as out:
        out.add(key(9), features(9))
    (moved,) = (tmp_path / "other").iterdir()
    moved.rename(tmp_path / moved.name)
    with pytest.raises(UserError, match="mixes features of two encoders"):
        FeatureStore(tmp_path)


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(UserError, match=r"no feature cache is here; write it with .*cache_fe"):
        FeatureStore(tmp_path)
