"""Kept files: what threads read at once."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metamorph_jax.data.kept_files import open_array, save_array


@pytest.fixture
def threads_that_take_turns():
    """Lets other threads run in the middle of whatever makes objects, as the hooks of jax do."""

    def turn(phase, info):
        time.sleep(1e-5)

    thresholds = gc.get_threshold()
    gc.callbacks.append(turn)
    gc.set_threshold(3)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(turn)


def test_threads_open_the_same_array_at_once(tmp_path, threads_that_take_turns):
    # Was seen in Python 3.11: "AST constructor recursion depth mismatch".
    path, array = tmp_path / "rows.npy", np.arange(12).reshape(4, 3)
    save_array(path, array)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_array(path), range(1000)))
    for again in opened:
        np.testing.assert_array_equal(again, array)


def test_nothing_is_left_beside_a_kept_array(tmp_path):
    save_array(tmp_path / "rows.npy", np.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]
