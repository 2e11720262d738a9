"""Tells that a run stands still, what it waits for, and where its threads are; ends nothing.

A process that dies is noticed by the others (joining.py). One that hangs, in a file system that
does not answer or a collective that some device never enters, is alive, and all wait for it.
"""

import collections
import contextlib
import datetime
import faulthandler
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

import jax

from metamorph_jax.errors import visible

LEAST_SECS = 600.0  # for a step, however short steps are
FIRST_SECS = 3600.0  # for the first step of a stage, which is compiled, and for a checkpoint
_FACTOR = 20  # times the median of the last steps
_NUM_RECENT = 20
_LOOKS = 20  # per `least_secs`
_DEVICES = "waiting for its devices, or through them for another process"
_CHECKPOINT = "saving a checkpoint"
_DATA = "waiting for data"


class _Doing(NamedTuple):
    """What the loop does.

    Attributes:
        what: in words.
        step: last one that is done; None: outside of steps.
        since: `time.monotonic()` at which it was done, or the checkpoint was begun.
        limit: seconds from then on after which it is told.
    """

    what: str
    step: int | None
    since: float
    limit: float


class StallWatch:
    """A thread that looks whether steps end. Used as a context manager, around all stages.

    Args:
        reading: returns what is being read for batches, as FILE:LINE.
        least_secs: that a step may take in any case.
        first_secs: that the first step, or a checkpoint, may take.
        stream: a file with a descriptor, for messages (default: stderr).
    """

    def __init__(
        self,
        reading: Callable[[], Sequence[str]] = list,
        *,
        least_secs: float = LEAST_SECS,
        first_secs: float = FIRST_SECS,
        stream: TextIO | None = None,
    ):
        self._reading, self._stream = reading, stream
        self._least_secs, self._first_secs = least_secs, first_secs
        self._doing: _Doing | None = None  # replaced as a whole, so that no lock is needed
        self._recent: collections.deque[float] = collections.deque(maxlen=_NUM_RECENT)
        self._is_first, self._told = True, 0.0
        self._end = threading.Event()

    def __enter__(self) -> "StallWatch":
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def begin(self, step: int) -> None:
        """Begins to watch the steps after `step`."""
        self._recent.clear()
        self._is_first = True
        self._doing = _Doing(_DEVICES, step, time.monotonic(), self._first_secs)

    def done(self, step: int) -> None:
        """Takes note that a step is done."""
        now = time.monotonic()
        if self._doing.since == self._told:
            self._say(f"step {step} is done after {now - self._doing.since:.0f} s; the run goes on")
        if not self._is_first:
            self._recent.append(now - self._doing.since)
        self._is_first = False
        usual = statistics.median(self._recent) if self._recent else 0.0
        limit = max(self._least_secs, _FACTOR * usual)
        self._doing = _Doing(_DEVICES, step, now, limit)

    def pause(self) -> None:
        """Ends watching, until the next `begin`."""
        self._doing = None

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Says that the body waits for data."""
        before = self._doing
        self._doing = before._replace(what=_DATA)
        yield
        self._doing = before

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Says that the body saves a checkpoint, the time of which is not that of a step."""
        before, begin = self._doing, time.monotonic()
        self._doing = _Doing(_CHECKPOINT, before and before.step, begin, self._first_secs)
        yield
        if self._told == begin:
            self._say(f"the checkpoint took {time.monotonic() - begin:.0f} s; the run goes on")
        self._doing = before and before._replace(since=before.since + time.monotonic() - begin)

    def _watch(self) -> None:
        while not self._end.wait(self._least_secs / _LOOKS):
            doing = self._doing
            if doing is None or doing.since == self._told:
                continue
            seconds = time.monotonic() - doing.since
            if seconds > doing.limit:
                self._told = doing.since
                self._say(self._describe(doing, seconds))
                faulthandler.dump_traceback(self._stream or sys.stderr)

    def _describe(self, doing: _Doing, seconds: float) -> str:
        """Returns the message, without the stacks that follow it."""
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        what = doing.what
        if what == _DATA and (read := self._reading()):
            what += f" (decoding {', '.join(read)})"
        if what == _DEVICES and jax.process_count() > 1:
            what += " (whose log then says what that one waits for)"
        if doing.step is not None:
            what += f"; last done is step {doing.step}"
        if recent := list(self._recent):
            what += f", a step usually takes {statistics.median(recent):.3g} s"
        return (
            f"the run stands still since {since:%Y-%m-%d %H:%M:%S} UTC, for {seconds:.0f} s: it is "
            f"{what}. Nothing is ended: it may go on by itself. To end it, kill one of its "
            "processes; the same command goes on from the newest checkpoint. Its threads:"
        )

    def _say(self, text: str) -> None:
        stream = self._stream or sys.stderr
        count = jax.process_count()
        who = f"process {jax.process_index()} of {count} on " if count > 1 else ""
        stream.write(visible(f"warning: {who}{socket.gethostname()}: {text}\n"))
        stream.flush()
