"""A disk that fills up in the middle of a save: nothing is lost, and the next save works."""

import errno
import logging
import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.errors import UserError
from tests.unit.checkpoints.examples import abstract, assert_same, make_meta


def _state(step):
    random = np.random.default_rng(step)
    return {"params": {"w": jnp.asarray(random.normal(size=(512, 512)).astype(np.float32))}}


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Yields (directory on a disk of 4 MB, function that fills it, function that frees it).

    A real one where this process may mount it; elsewhere the system calls fail as they would.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        ballast = disk / "ballast"
        yield disk / "run", lambda: ballast.write_bytes(bytes(1_500_000)), ballast.unlink
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        return

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    yield disk / "run", lambda: monkeypatch.setattr(os, "fsync", full), monkeypatch.undo


def _check_a_full_disk(directory, fill, free, caplog):
    store = CheckpointStore(directory)
    for step in (1, 2):
        store.save(step, _state(step), make_meta(step))
    store.wait()
    fill()
    with caplog.at_level(logging.ERROR):
        store.save(3, _state(3), make_meta(3))
        with pytest.raises(UserError):
            store.wait()
    (record,) = caplog.records
    message = record.getMessage()
    assert "step 3 was not saved" in message
    assert "no space left: about 1,048,576 bytes are needed" in message
    assert "are free" in message and "--workdir" in message
    assert record.exc_info is None
    assert sorted(os.listdir(directory)) == ["00000001", "00000002"]
    free()
    assert_same(CheckpointStore(directory).restore(abstract(_state(0)))[0], _state(2))
    store.save(4, _state(4), make_meta(4))
    store.wait()
    assert store.steps() == [4, 2]
    assert_same(store.restore(abstract(_state(0)))[0], _state(4))


def test_small_disk(small_disk, caplog):
    _check_a_full_disk(*small_disk, caplog)


def test_disk_that_fills_up_at_the_very_end_of_a_save(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill():
        monkeypatch.setattr(os, "fsync", full)

    _check_a_full_disk(tmp_path / "run", fill, monkeypatch.undo, caplog)


def test_two_full_disks_in_a_row_stop_the_run_at_the_third_save(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)

    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    store.save(1, _state(1), make_meta(1))
    store.save(2, _state(2), make_meta(2))
    with pytest.raises(UserError, match="step 2 was not saved"):
        store.save(3, _state(3), make_meta(3))
    monkeypatch.undo()
