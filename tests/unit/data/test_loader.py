import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.data.loader import iterate_steps, step_rows
from metamorph_jax.errors import UserError


def square(step):
    return {"x": np.full((2, 3), step * step), "pid": np.array(os.getpid())}


def failing(step):
    if step == 3:
        raise UserError("data.jsonl:3: image 'a.png' cannot be read; check the path")
    return square(step)


def survives(step):
    """Signals its own process as a scheduler signals a whole process group."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return square(step)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 1), (0, 4), (2, 4)])
def test_order_does_not_depend_on_workers(workers, prefetch):
    batches = iterate_steps(square, 5, workers, prefetch)
    found = list(itertools.islice(batches, 6))
    batches.close()
    assert [int(batch["x"][1, 2]) for batch in found] == [step * step for step in range(5, 11)]
    pids = {int(batch["pid"]) for batch in found}
    assert (pids == {os.getpid()}) if workers == 0 else (os.getpid() not in pids)
    assert len(pids) == max(workers, 1)


def test_mistake_arrives_at_its_step():
    batches = iterate_steps(failing, 1, 0, 2)
    assert [int(next(batches)["x"][0, 0]) for _ in range(2)] == [1, 4]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "data.jsonl:3: image 'a.png' cannot be read; check the path"


def test_workers_ignore_signals_and_end_when_the_iterator_is_closed():
    batches = iterate_steps(survives, 0, 1, 1)
    found = [next(batches) for _ in range(3)]
    assert [int(batch["x"][0, 0]) for batch in found] == [0, 1, 4]
    pid = int(found[0]["pid"])
    batches.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
import os, time
import numpy as np
from metamorph_jax.data.loader import iterate_steps

def build(step):
    return {"pid": np.array(os.getpid())}

if __name__ == "__main__":
    batches = iterate_steps(build, 0, 2, 4)
    print(*{int(next(batches)["pid"]) for _ in range(4)}, flush=True)
    time.sleep(600)
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        time.sleep(3)  # threads of the parent may end; its workers do not
        assert all(map(is_alive, pids))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in pids if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_rows_of_a_step_at_some_places():
    assert step_rows(3, 12) == range(36, 48)
    assert step_rows(3, 12, range(4, 8)) == [40, 41, 42, 43]
    assert step_rows(3, 12, [0, 11]) == [36, 47]
