"""The line a person watches while a run works: step, losses, rate, time left, what it waits for.

On a terminal the line is rewritten in place; in a log file there is one line per interval.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO


class Progress:
    """Progress of one loop of known length.

    Args:
        total: steps in all.
        unit: what one step is called ("step", "image").
        stream: where to write; standard error by default.
        log_interval: steps between lines where the stream is no terminal.
        label: put in front, for example the stage's name.
        start: steps that were done before, in an earlier process.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        total: int,
        unit: str = "step",
        stream: TextIO | None = None,
        *,
        log_interval: int = 20,
        label: str = "",
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit, self._label = total, unit, label
        self._stream = sys.stderr if stream is None else stream
        self._log_interval = log_interval
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._is_terminal = self._stream.isatty()
        self._last_shown = -float("inf")
        self._last_logged = start
        self._line = f"{label} " * bool(label) + f"{unit} {start}/{total}"
        self._has_open_line = False

    def update(
        self,
        step: int,
        values: Mapping[str, float] | None = None,
        total: int | None = None,
        note: str = "",
    ) -> None:
        """Tells that `step` steps are done in all, with some values to show (losses).

        The first call starts the clock, because the first step also compiles.

        Args:
            step: how many are done, those of an earlier process included.
            values: to show.
            total: a better estimate of the steps in all; None: as before.
            note: put at the end of the line.
        """
        self._total = self._total if total is None else total
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        self._line = self._describe(step, now, values or {}) + f" · {note}" * bool(note)
        is_last = step >= self._total
        if self._is_terminal:
            if is_last or now - self._last_shown >= 0.1:  # ten times a second is enough for eyes
                self._last_shown = now
                self._rewrite(self._line)
        elif is_last or step // self._log_interval > self._last_logged // self._log_interval:
            self._last_logged = step
            self._print(self._line)

    def waiting_for(self, what: str) -> None:
        """Tells what holds the loop up ("compiling", "saving a checkpoint"), right away."""
        line = f"{self._line} · {what} ..."
        if self._is_terminal:
            self._rewrite(line)
        else:
            self._print(line)

    def close(self) -> None:
        """Ends the line, so that what is printed next starts on its own."""
        if self._has_open_line:
            self._rewrite(self._line)
            self._print("")
            self._has_open_line = False

    def _describe(self, step: int, now: float, values: Mapping[str, float]) -> str:
        """Returns the line for this moment."""
        parts = [f"{self._label} " * bool(self._label) + f"{self._unit} {step}/{self._total}"]
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        first_step, first_time = self._first
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            shown = f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"
            parts.append(f"{shown} {self._unit}s/s")
            parts.append(f"{format_secs((self._total - step) / rate)} left")
        return " · ".join(parts)

    def _rewrite(self, line: str) -> None:
        """Replaces the terminal's current line, cut to its width."""
        width = shutil.get_terminal_size((100, 24)).columns - 1
        self._stream.write("\r\x1b[K" + line[:width])
        self._stream.flush()
        self._has_open_line = True

    def _print(self, line: str) -> None:
        """Writes a whole line."""
        self._stream.write(line + "\n")
        self._stream.flush()


def format_secs(seconds: float) -> str:
    """Returns a duration for people: "8 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
