"""Runs a pure function "step -> batch" ahead of the training loop, in threads or processes (grain).

Because a batch depends on its step alone, the number of threads or processes changes nothing but
speed, and resuming is starting at another step.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
from absl import flags

from metamorph_jax.errors import UserError

Batch = TypeVar("Batch")
_MAX_THREADS = 8
_PARENT_CHECK_SECONDS = 1.0  # at most; the end of the parent is noticed at once


def iterate_steps(
    build: Callable[[int], Batch], start_step: int, num_workers: int, prefetch_batches: int
) -> Iterator[Batch]:
    """Yields build(start_step), build(start_step + 1), ... without end.

    Args:
        build: pure; picklable if `num_workers` > 0. What it raises is raised here, at its step.
        start_step: first step.
        num_workers: processes; 0 uses threads of this process.
        prefetch_batches: batches prepared ahead; 0 builds each when it is asked for.
    """
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    threads = min(prefetch_batches, _MAX_THREADS) if num_workers == 0 else 1
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=prefetch_batches if num_workers == 0 else 1
    )
    dataset = steps.map(build).to_iter_dataset(options)
    if num_workers > 0:
        if not flags.FLAGS.is_parsed():  # grain reads its flags; callers need not be absl programs
            flags.FLAGS.mark_as_parsed()
        per_worker = max(1, prefetch_batches // num_workers)
        workers = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=per_worker
        )
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_prepare_worker)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def process_rows(
    step: int, global_batch_size: int, process_index: int = 0, process_count: int = 1
) -> range:
    """Returns the rows of a step that a process builds, counted from the start of the stage.

    Raises:
        UserError: the rows cannot be shared equally.
    """
    size, rest = divmod(global_batch_size, process_count)
    if rest:
        raise UserError(
            f"global_batch_size={global_batch_size} is no multiple of the {process_count} processes"
        )
    first = step * global_batch_size + process_index * size
    return range(first, first + size)


def _prepare_worker(worker: int, num_workers: int) -> None:
    """Makes a worker live exactly as long as the main process wants it.

    Ctrl-C and SIGTERM, which reach the whole process group, are left to the main process: it saves,
    closes the iterator, and so ends the workers. If it is killed and cannot, they end themselves.
    """
    del worker, num_workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    """Waits until the main process is gone, then ends this one, whatever it is doing.

    Linux could do it alone (PR_SET_PDEATHSIG), but it watches the *thread* that started the worker,
    and grain starts workers from threads that may end long before the process does.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive() and os.getppid() == parent.pid:
        parent.join(_PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
