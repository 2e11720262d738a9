"""One piece ahead: never two, errors where they belong, and no thread that stays."""

import contextlib
import threading
import time

import pytest

from metamorph_jax.checkpoints.ahead import one_ahead


def threads():
    return [thread for thread in threading.enumerate() if "one ahead" in thread.name]


def test_the_next_is_made_while_one_is_used_and_no_more():
    made = []
    second = threading.Event()

    def make():
        for i in range(5):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    with contextlib.closing(one_ahead(make())) as items:
        assert next(items) == 0
        assert second.wait(10)  # without being asked for
        time.sleep(0.05)
        assert made == [0, 1]
        assert list(items) == [1, 2, 3, 4]
    assert list(one_ahead([])) == [] and not threads()


def test_an_error_comes_where_its_item_was_expected():
    def make():
        yield 1
        raise OSError(5, "Input/output error")

    items = one_ahead(make())
    assert next(items) == 1
    with pytest.raises(OSError, match="Input/output"):
        next(items)
    assert not threads()


def test_who_leaves_early_leaves_no_thread():
    with (
        pytest.raises(KeyboardInterrupt),
        contextlib.closing(one_ahead(iter(range(9)))) as items,
    ):
        for _ in items:
            raise KeyboardInterrupt
    assert not threads()
