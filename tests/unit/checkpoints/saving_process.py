"""Restores, checks what it restored, then saves one step after another until it is killed.

    python saving_process.py DIRECTORY                   killed by the test, at any moment
    python saving_process.py DIRECTORY EVENT PATTERN     kills itself at an audit event of Python
                                                         whose arguments match, e.g. os.rename

Prints the number of each step that must be on disk by then.
"""

import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from metamorph_jax.checkpoints.store import CheckpointStore
from tests.unit.checkpoints.examples import abstract, assert_same, make_meta, make_state


def kill_at(event: str, pattern: str) -> None:
    """From now on, dies by SIGKILL at the first such event."""

    def hook(name, arguments):
        if name == event and re.search(pattern, " -> ".join(map(str, arguments[:2]))):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(directory: str, *trap: str) -> None:
    store = CheckpointStore(directory)
    step = 0
    if (found := store.restore(abstract(make_state(0)))) is not None:
        state, meta = found
        step = meta.step
        assert_same(state, make_state(step))
    first = step
    while True:
        step += 1
        store.save(step, make_state(step), make_meta(step))
        if step > first + 1:  # the save before this one was waited for
            print(step - 1, flush=True)
        if trap and step == first + 3:
            store.wait()
            kill_at(*trap)


if __name__ == "__main__":
    main(*sys.argv[1:])
