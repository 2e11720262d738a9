"""Each process builds the rows that its devices hold, and the global batch is the same for all."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from metamorph_jax.sharding.mesh import AXIS_NAMES
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.training import batches
from metamorph_jax.training.batches import SharedRows, local_places, place

SHAPES = [(1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)]


class Held:
    """A sharding as a process with some of its devices sees it."""

    def __init__(self, sharding, devices):
        self._sharding, self._devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        whole = self._sharding.devices_indices_map(shape)
        return {device: whole[device] for device in self._devices}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_processes_hold_all_rows_and_know_which(shape, order):
    devices = np.array(jax.devices()[:4])[list(order)].reshape(*shape[:2], 1, shape[2])
    sharding = batch_sharding(Mesh(devices, AXIS_NAMES))
    shares = [local_places(Held(sharding, jax.devices()[first : first + 2]), 8) for first in (0, 2)]
    assert set(shares[0]) | set(shares[1]) == set(range(8))
    if shape == (1, 1, 4):  # every device has every row
        assert shares == [list(range(8))] * 2
    elif order == (0, 1, 2, 3):
        assert shares == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for share in shares:
        assert share == sorted(share)


@pytest.mark.parametrize("shape", SHAPES)
def test_placed_rows_are_the_batch(shape):
    devices = np.array(jax.devices()[:4])[[2, 0, 3, 1]].reshape(*shape[:2], 1, shape[2])
    sharding = batch_sharding(Mesh(devices, AXIS_NAMES))
    batch = {"tokens": np.arange(24).reshape(8, 3), "mask": np.arange(8) % 2 == 0}
    placed = place(batch, sharding, local_places(sharding, 8), 8)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        assert placed[name].sharding.is_equivalent_to(sharding, array.ndim)


class Owned:
    """A device of another process, as a mesh of several processes shows it."""

    def __init__(self, process_index):
        self.process_index = process_index


class Spread:
    """A mesh of (fsdp, context) whose devices are of these processes."""

    def __init__(self, owners):
        self.devices = np.array([[Owned(index) for index in row] for row in owners])


@pytest.mark.parametrize(
    ("owners", "shared"),
    [
        ([[0, 0], [1, 1]], []),  # context lies within processes
        ([[0, 1], [0, 1]], [0, 4]),
        ([[0, 1], [2, 3]], [0]),  # of process 0
    ],
)
def test_rows_that_processes_share_have_checksums(monkeypatch, owners, shared):
    real = batch_sharding(Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2, 1), AXIS_NAMES))
    indices = list(real.devices_indices_map((8,)).values())
    mesh = Spread(owners)
    held = dict(zip(mesh.devices.flat, indices, strict=True))
    sharding = type("", (), {"devices_indices_map": lambda self, shape: held})()
    monkeypatch.setattr(batches, "batch_sharding", lambda mesh: sharding)
    rows, same, other = (SharedRows(mesh, 8) for _ in range(3))
    assert rows.groups == [0, 0, 4, 4]
    batch = {"images": np.arange(24, dtype=np.uint8).reshape(8, 3), "ids": np.arange(8)}
    changed = batch | {"images": batch["images"].copy()}
    changed["images"][5, 1] = 0
    places = list(range(8))
    rows.add(batch, places), same.add(batch, places), other.add(changed, places)
    assert [mark != 0 for mark in rows.marks] == [group in shared for group in rows.groups]
    assert rows.marks == same.marks
    assert (rows.marks != other.marks) == (4 in shared)
    other.add(batch, places), rows.add(batch, places)
    assert (rows.marks != other.marks) == (4 in shared)  # a difference is not forgotten
    assert all(0 <= mark < 2**31 for mark in rows.marks)
