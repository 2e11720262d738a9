"""Which sample a data worker was decoding when it died.

A decoder that crashes, or that is killed for the memory it takes, takes its process along and
cannot report anything. So each worker writes the name of a sample into a small file of its own
before it decodes it, and empties the file afterwards: what stands in the file of a dead worker is
blamed. `loader.py` notices deaths and starts anew; who builds rows leaves out what is blamed.
"""

import collections
import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from metamorph_jax.data.faults import BadSample

MAX_DEATHS = 2  # one may be bad luck: a machine that is short of memory kills any worker

_slot: int | None = None  # this process's file, if it is a worker
_entered: dict[int, str] = {}  # by the threads of this process, if it is none
_all_slots: "weakref.WeakSet[WorkerSlots]" = weakref.WeakSet()


def being_decoded() -> list[str]:
    """Returns the samples that the threads and workers of this process decode now, in any order."""
    names = [name for slots in list(_all_slots) for name in slots.names()]
    return [*_entered.values(), *names]


class DeathJournal:
    """Deaths of worker processes, by the sample that was being decoded.

    Kept by the main process. Workers get a copy by pickling, as a part of what builds their
    batches; since all start anew after a death, their copies are up to date.

    Args:
        blamed: names that are blamed from the beginning, for instance by an earlier run.
    """

    def __init__(self, blamed: Iterable[str] = ()):
        self._deaths = collections.Counter(dict.fromkeys(blamed, MAX_DEATHS))

    @contextlib.contextmanager
    def entering(self, name: str) -> Iterator[None]:
        """Blames `name` if this worker dies inside; in the main process, only takes note.

        Args:
            name: of the sample, for instance FILE:LINE. Contexts are not nested.
        """
        if _slot is None:
            _entered[threading.get_ident()] = name
            try:
                yield
            finally:
                del _entered[threading.get_ident()]
            return
        os.pwrite(_slot, name.encode("utf-8", "surrogateescape"), 0)
        try:
            yield
        finally:
            os.ftruncate(_slot, 0)

    def blamed(self) -> frozenset[str]:
        """Returns the names whose decoding ended workers `MAX_DEATHS` times: leave them out."""
        return frozenset(name for name, count in self._deaths.items() if count >= MAX_DEATHS)

    def check(self, name: str) -> None:
        """Raises BadSample if `name` is blamed."""
        if name in self.blamed():
            message = f"{name}: decoding its media ended data workers twice; look at the files"
            raise BadSample("killed_worker", message)

    def count(self, names: Iterable[str]) -> list[str]:
        """Counts one death for each name; returns those that were not yet blamed.

        A blamed one among them means that it was decoded nevertheless.
        """
        new = [name for name in names if self._deaths[name] < MAX_DEATHS]
        self._deaths.update(new)
        return new


class WorkerSlots:
    """The files of a set of workers. Workers get a copy by pickling."""

    def __init__(self):
        self._folder = tempfile.mkdtemp(prefix="metamorph_jax-")
        _all_slots.add(self)  # but not the workers' copies

    def enroll(self) -> None:
        """Makes the file of the worker that calls this."""
        global _slot
        path = os.path.join(self._folder, str(os.getpid()))
        _slot = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def dead(self) -> dict[int, str]:
        """Returns the workers that are gone, and what each was decoding ("": nothing)."""
        alive = {child.pid for child in multiprocessing.active_children()}
        return {
            int(file.name): _content(file) for file in self._files() if int(file.name) not in alive
        }

    def names(self) -> list[str]:
        """Returns what workers are decoding."""
        return list(filter(None, map(_content, self._files())))

    def close(self) -> None:
        """Removes the files; ends whoever is left."""
        alive = {str(child.pid) for child in multiprocessing.active_children()}
        for name in alive.intersection(file.name for file in self._files()):
            os.kill(int(name), signal.SIGKILL)
        self.remove()

    def remove(self) -> None:
        """Removes the files, however many do so at once."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        # None, if somebody cleaned up the temporary folder during a long run.
        return sorted(Path(self._folder).glob("*"))


def _content(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "surrogateescape")
