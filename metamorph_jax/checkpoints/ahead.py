"""The next piece is made in a thread while this one is used: reading while writing.

At most one piece is ahead, so that what is converted may be larger than memory.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; while one is used, the next is made in a thread.

    What goes wrong in the thread is raised where its item was expected. The thread has ended when
    the generator has; who may leave early closes it (`contextlib.closing`), which waits for the
    item under way.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="one ahead") as worker:
        following = worker.submit(next, iterator, _END)
        while (item := following.result()) is not _END:
            following = worker.submit(next, iterator, _END)
            yield item
