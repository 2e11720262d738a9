"""SIGKILL at random moments and at chosen ones: there is always a complete checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.checkpoints.store import CheckpointStore
from tests.unit.checkpoints.examples import abstract, assert_same, make_state

SCRIPT = Path(__file__).with_name("saving_process.py")


def _start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _check(directory, reported: str, errors: str) -> int:
    """Every complete checkpoint is what it claims to be; nothing that was reported is lost."""
    assert not errors, errors
    store = CheckpointStore(directory)
    assert len(store.steps()) >= min(2, int(reported.split()[-1]))  # two, once there were two
    for step in store.steps():
        state, meta = store.restore(abstract(make_state(0)), step=step)
        assert meta.step == step
        assert_same(state, make_state(step))
    newest = store.read_meta().step
    assert newest >= int(reported.split()[-1])
    assert all(not name.count("damaged") for name in os.listdir(directory))
    return newest


def test_ten_kills_at_random_moments(tmp_path):
    random = np.random.default_rng(0)
    newest = 0
    for _ in range(10):
        process = _start(tmp_path)
        first = process.stdout.readline()
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        reported, errors = process.communicate(timeout=60)
        now = _check(tmp_path, first + reported, errors)
        assert now > newest
        newest = now


DELETING = ("os.remove", r"^manifest\.ocdbt")


@pytest.mark.parametrize(
    ("event", "pattern", "survivor"),
    [
        ("os.mkdir", r"/\d{8}\.tmp-\d+ ->", 3),  # before anything is there
        ("os.mkdir", r"/array_metadatas ->", 3),  # arrays half written
        ("open", r"/meta\.json -> w", 3),  # arrays written, nothing else
        ("open", r"/manifest\.json -> w", 3),  # everything but the manifest
        ("os.rename", r"\.tmp-\d+ -> .*/\d{8}$", 3),  # complete, not yet published
        ("os.rename", r"/\d{8} -> .*\.tmp-\d+$", 4),  # published, the oldest still there
        (*DELETING, 4),  # the oldest half deleted
    ],
)
def test_kill_at_each_stage_of_the_fourth_save(tmp_path, event, pattern, survivor):
    process = _start(tmp_path, event, pattern)
    reported, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert _check(tmp_path, reported, errors) == survivor
    # The next start cleans up, goes on from there, and is killed in its own fourth save.
    process = _start(tmp_path, *DELETING)
    reported, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert _check(tmp_path, reported, errors) == survivor + 4
    assert sorted(name for name in os.listdir(tmp_path) if ".tmp-" not in name) == [
        f"{survivor + 3:08d}",
        f"{survivor + 4:08d}",
    ]
