"""`--profile=10:15`: a trace of some steps, for xprof or TensorBoard."""

from pathlib import Path

import jax

from metamorph_jax.errors import UserError
from metamorph_jax.typing import PyTree


def parse_span(text: str) -> tuple[int, int]:
    """Returns the first and the last step of "10:15".

    Raises:
        UserError: it is no such span.
    """
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile={text}: expected FIRST:LAST, steps of the run, as 10:15")
    return int(first), int(last)


class Profiler:
    """Writes the trace of a span of steps.

    Args:
        span: first and last step of the run; None: nothing is traced.
        folder: receives the trace.
    """

    def __init__(self, span: tuple[int, int] | None, folder: Path):
        self._span, self._folder, self._is_running = span, folder, False

    def before(self, step: int) -> None:
        """Begins the trace if `step` is the first of the span, or one in it after a resume."""
        if self._span and not self._is_running and self._span[0] <= step <= self._span[1]:
            jax.profiler.start_trace(self._folder)
            self._is_running = True

    def after(self, step: int, results: PyTree) -> None:
        """Ends the trace once `results` of the last step of the span are there."""
        if self._is_running and step >= self._span[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running, self._span = False, None
            print(
                f"trace of the steps in {self._folder}; xprof --logdir={self._folder}", flush=True
            )
