"""SIGTERM and Ctrl-C ask the loop to save and leave; a second one leaves at once.

Programs without a loop leave on SIGTERM as they do on Ctrl-C, and tidy up.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import TracebackType

EXIT_STOPPED = 75  # EX_TEMPFAIL: "run me again", which schedulers can requeue on


class Stopped(Exception):
    """A stop was asked for where leaving at once loses nothing that could be saved."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the main thread, so that what is unfinished is removed."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would stop the tidying up
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Context manager that turns the first SIGTERM or SIGINT into a flag.

    Attributes:
        signal_name: what arrived, or None.
    """

    def __init__(self):
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def ask(self, signal_name: str) -> None:
        """Sets the flag as if the signal had arrived here, as it did in another process."""
        self.signal_name = self.signal_name or signal_name

    def _handle(self, number: int, frame: object) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name
        message = f"\n{self.signal_name}: finishing the step, then saving; again: leave at once\n"
        os.write(2, message.encode())  # print is not safe inside a signal handler
