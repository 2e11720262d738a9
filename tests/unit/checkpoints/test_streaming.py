"""Arrays in pieces: what is stored in many pieces is read whole, and the other way round."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.checkpoints import arrays
from metamorph_jax.checkpoints.arrays import blocks
from metamorph_jax.checkpoints.manifest import verify
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.checkpoints.streaming import open_params, write_params
from metamorph_jax.errors import UserError
from tests.unit.checkpoints.examples import make_meta

PARAMS = {
    "contrastive": {"logit_scale": np.asarray(2.5, np.float32)},
    "language_model": {
        "blocks": {"kernel": np.arange(5 * 12 * 8, dtype=np.float32).reshape(5, 12, 8)},
        "embed": {"embedding": np.arange(40 * 6, dtype=np.float32).reshape(40, 6)},
        "norm": {"scale": np.ones(3, jnp.bfloat16)},
    },
}
NAMED = {
    "contrastive/logit_scale": PARAMS["contrastive"]["logit_scale"],
    "language_model/blocks/kernel": PARAMS["language_model"]["blocks"]["kernel"],
    "language_model/embed/embedding": PARAMS["language_model"]["embed"]["embedding"],
    "language_model/norm/scale": PARAMS["language_model"]["norm"]["scale"],
}


@dataclasses.dataclass
class Reader:
    """A `BlockReader` that notes what is asked of it."""

    array: np.ndarray
    asked: list

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def read(self, index):
        self.asked.append(tuple((part.start, part.stop) for part in index))
        return self.array[index]


@pytest.fixture(params=[100, 2**20])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", request.param)
    return request.param


def test_written_in_parts_and_restored_whole(tmp_path, chunk_bytes):
    readers = {name: Reader(array, []) for name, array in NAMED.items()}
    seen = []
    folder = write_params(tmp_path, readers, make_meta(0), seen.append)
    verify(folder)
    assert sum(seen) == sum(array.nbytes for array in NAMED.values())
    stack = readers["language_model/blocks/kernel"].asked
    assert len(stack) == (1 if chunk_bytes > 2000 else 20)  # a layer of 384 bytes is cut, too
    if len(stack) > 1:
        assert {stop - start for (start, stop), *_ in stack} == {1}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    restored, meta = CheckpointStore(tmp_path).restore_params(shapes)
    assert meta.step == 0
    jax.tree.map(np.testing.assert_array_equal, restored, PARAMS)


def test_saved_whole_and_read_in_parts(tmp_path, chunk_bytes):
    store = CheckpointStore(tmp_path)
    store.save(3, {"params": jax.tree.map(jnp.asarray, PARAMS)}, make_meta(3))
    store.wait()
    found = open_params(tmp_path / "00000003")
    assert found.keys() == NAMED.keys()
    for name, reader in found.items():
        assert (reader.shape, reader.dtype) == (NAMED[name].shape, NAMED[name].dtype)
        index = tuple(slice(size // 3, size) for size in reader.shape)
        np.testing.assert_array_equal(reader.read(index), NAMED[name][index])


def test_a_checkpoint_that_vanishes_is_an_error_and_not_zeros(tmp_path, chunk_bytes):
    zeros = {name: Reader(np.zeros_like(array), []) for name, array in NAMED.items()}
    folder = write_params(tmp_path, zeros, make_meta(0))
    found = open_params(folder)
    for reader in found.values():  # stored zeros are no missing ones
        assert not reader.read(tuple(slice(0, size) for size in reader.shape)).any()
    found = open_params(folder)
    shutil.rmtree(folder / "state")
    for reader in found.values():
        with pytest.raises(UserError, match="deleted or damaged while it was read; name a newer"):
            reader.read(tuple(slice(0, size) for size in reader.shape))
    with pytest.raises(UserError, match="deleted or damaged while it was read; name a newer"):
        open_params(folder)


def test_what_goes_wrong_leaves_nothing(tmp_path):
    class Broken(Reader):
        def read(self, index):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        write_params(tmp_path, {"x": Broken(np.ones(3), [])}, make_meta(0))
    assert list(tmp_path.iterdir()) == []
    write_params(tmp_path, {"x": Reader(np.ones(3), [])}, make_meta(0))
    with pytest.raises(UserError, match="is there already"):
        write_params(tmp_path, {"x": Reader(np.ones(3), [])}, make_meta(0))


def test_the_folder_of_another_process_stays(tmp_path):
    """Two machines on one disk may have processes of the same number."""
    other = tmp_path / f"00000000.tmp-{os.getpid()}"
    other.mkdir()
    (other / "half").write_text("written")
    with pytest.raises(FileExistsError):
        write_params(tmp_path, {"x": Reader(np.ones(3), [])}, make_meta(0))
    assert (other / "half").read_text() == "written"


def test_blocks_cover_an_array_once():
    counts = np.zeros((5, 7, 2), int)
    for index in blocks(counts.shape, (2, 3, 2)):
        counts[index] += 1
    assert (counts == 1).all()
    assert list(blocks((), ())) == [()]
