"""Runs a pure function "step -> batch" ahead of the training loop, in threads or processes (grain).

Because a batch depends on its step alone, the number of threads or processes changes nothing but
speed, and resuming is starting at another step. So is going on after a worker died: what it was
decoding is in `death_journal.py`.
"""

import functools
import logging
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import grain
from absl import flags

from metamorph_jax.data.death_journal import DeathJournal, WorkerSlots
from metamorph_jax.errors import UserError

Batch = TypeVar("Batch")
_MAX_THREADS = 8
_PARENT_CHECK_SECONDS = 1.0  # at most; the end of the parent is noticed at once
_CHECK_SECONDS = 1.0  # between looks whether workers live, while a batch is waited for
_SILENCE_SECONDS = 3.0  # a worker is dead, and grain does not say so
_CLOSE_SECONDS = 40.0  # grain gives each worker 25 s to finish what it builds
_MAX_UNEXPLAINED_DEATHS = 3
_GRAIN_REPORTS_DEATH = "Worker process was terminated unexpectedly with exit code "


class _WorkerDied(Exception):
    """A worker process ended by itself; says how.

    Attributes:
        is_noticed: whether grain has noticed it.
    """

    def __init__(self, message: str, is_noticed: bool):
        super().__init__(message)
        self.is_noticed = is_noticed


def iterate_steps(
    build: Callable[[int], Batch],
    start_step: int,
    num_workers: int,
    prefetch_batches: int,
    journal: DeathJournal | None = None,
) -> Iterator[Batch]:
    """Yields build(start_step), build(start_step + 1), ... without end.

    If a worker process dies, all are started anew at the step that is due.

    Args:
        build: pure; picklable if `num_workers` > 0. What it raises is raised here, at its step.
        start_step: first step.
        num_workers: processes; 0 uses threads of this process.
        prefetch_batches: batches prepared ahead; 0 builds each when it is asked for.
        journal: the one that `build` tells which sample it decodes, and that tells it which ones
            to leave out because they end workers. Without it, workers may die a few times only.

    Raises:
        UserError: workers die again and again, and not of a sample.
    """
    if num_workers == 0:
        yield from _iterate_in_threads(build, start_step, prefetch_batches)
        return
    journal = journal or DeathJournal()
    unexplained = 0
    while True:
        slots = WorkerSlots()
        iterator = _start_workers(build, start_step, num_workers, prefetch_batches, slots)
        close = iterator.close
        try:
            while True:
                yield _next_batch(iterator, slots)
                start_step, unexplained = start_step + 1, 0
        except _WorkerDied as death:
            close = functools.partial(_close_after_death, iterator, death)
            names = journal.count(filter(None, slots.dead().values()))
            unexplained = 0 if names else unexplained + 1
            _report(death, names, journal, start_step, unexplained)
        finally:
            close()
            slots.close()


def _iterate_in_threads(
    build: Callable[[int], Batch], start_step: int, prefetch_batches: int
) -> Iterator[Batch]:
    options = grain.ReadOptions(
        num_threads=min(prefetch_batches, _MAX_THREADS), prefetch_buffer_size=prefetch_batches
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    iterator = iter(steps.map(build).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _start_workers(
    build: Callable[[int], Batch],
    start_step: int,
    num_workers: int,
    prefetch_batches: int,
    slots: WorkerSlots,
) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():  # grain reads its flags; callers need not be absl programs
        flags.FLAGS.mark_as_parsed()
    workers = grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=max(1, prefetch_batches // num_workers)
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    dataset = steps.map(build).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    prepare = functools.partial(_prepare_worker, slots)
    return iter(dataset.mp_prefetch(workers, worker_init_fn=prepare))


def _next_batch(iterator: Iterator[Batch], slots: WorkerSlots) -> Batch:
    """Returns the next batch, or raises _WorkerDied.

    grain (0.2.18) raises a RuntimeError for a worker that ends with an exit code other than 0. It
    waits for ever for one that ends with 0, or that dies while it writes to the pipe. So it is
    waited for in a thread, which can be given up.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        try:
            answers.put((next(iterator), None))
        except BaseException as error:  # raised where it is waited for
            answers.put((None, error))

    threading.Thread(target=read, name="next-batch", daemon=True).start()
    deadline = math.inf
    while True:
        try:
            batch, error = answers.get(timeout=_CHECK_SECONDS)
            break
        except queue.Empty:
            if time.monotonic() > deadline:
                raise _WorkerDied("unknown exit code", is_noticed=False) from None
            if deadline == math.inf and slots.dead():
                deadline = time.monotonic() + _SILENCE_SECONDS
    if isinstance(error, RuntimeError) and str(error).startswith(_GRAIN_REPORTS_DEATH):
        code = str(error).removeprefix(_GRAIN_REPORTS_DEATH).partition(". ")[0]
        raise _WorkerDied(f"exit code {code}", is_noticed=True)
    if error is not None:
        raise error
    return batch


def _report(
    death: _WorkerDied, names: list[str], journal: DeathJournal, step: int, unexplained: int
) -> None:
    """Logs a death, or raises UserError if it is one too many."""
    if unexplained >= _MAX_UNEXPLAINED_DEATHS:
        raise UserError(
            f"data workers died {unexplained} times in a row at step {step}, not of a sample ("
            f"{death}); code -9 mostly means that memory ran out: lower data.num_workers or "
            "data.prefetch_batches; to see an error of the code itself, set data.num_workers to 0"
        )
    blamed = journal.blamed()
    decoded = ", ".join(
        f"{name} ({'left out' if name in blamed else 'tried once more'} from now on)"
        for name in names
    )
    logging.getLogger(__name__).warning(
        "a data worker died (%s) while decoding %s; all start anew at step %d",
        death,
        decoded or "nothing",
        step,
    )


def _close_after_death(iterator: grain.DatasetIterator, death: _WorkerDied) -> None:
    """Closes an iterator although a dead worker may hold a lock that closing waits for."""
    closing = threading.Thread(target=iterator.close, name="close", daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS if death.is_noticed else _CHECK_SECONDS)


def step_rows(
    step: int, global_batch_size: int, places: Sequence[int] | None = None
) -> Sequence[int]:
    """Returns rows of a step, counted from the start of the stage.

    Args:
        step: of the stage.
        global_batch_size: rows of a step, over all processes.
        places: in the batch, of the rows that are wanted; None: all.
    """
    first = step * global_batch_size
    rows = range(first, first + global_batch_size)
    return rows if places is None else [rows[place] for place in places]


def _prepare_worker(slots: WorkerSlots, worker: int, num_workers: int) -> None:
    """Makes a worker live exactly as long as the main process wants it.

    Ctrl-C and SIGTERM, which reach the whole process group, are left to the main process: it saves,
    closes the iterator, and so ends the workers. If it is killed and cannot, they end themselves.
    """
    del worker, num_workers
    slots.enroll()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(
        target=_end_with_parent, args=(slots,), name="end-with-parent", daemon=True
    ).start()


def _end_with_parent(slots: WorkerSlots) -> None:
    """Waits until the main process is gone, then ends this one, whatever it is doing.

    Linux could do it alone (PR_SET_PDEATHSIG), but it watches the *thread* that started the worker,
    and grain starts workers from threads that may end long before the process does.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive() and os.getppid() == parent.pid:
        parent.join(_PARENT_CHECK_SECONDS)
    slots.remove()
    os.kill(os.getpid(), signal.SIGKILL)
