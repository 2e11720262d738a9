"""What jax compiles in this process, as jax itself reports it: how many programs, how long, cached.

A training step is compiled once. Compiled again after its second call, it has met something new,
mostly another shape; that costs as much as many steps, and is told.
"""

import dataclasses
import threading
import warnings

import jax
import jax.monitoring

from metamorph_jax.typing import PyTree

_COMPILED = "/jax/core/compile/backend_compile_duration"  # reading from the cache included
_FROM_CACHE = "/jax/compilation_cache/compile_time_saved_sec"
_NUM_FREE_STEPS = 2


@dataclasses.dataclass
class Compiled:
    """What was compiled in some stretch of time.

    Attributes:
        programs: their names.
        secs: spent compiling and reading compiled ones, without tracing.
        num_cached: of them were read instead of compiled.
        saved_secs: how much longer these took to compile once.
    """

    programs: list[str] = dataclasses.field(default_factory=list)
    secs: float = 0.0
    num_cached: int = 0
    saved_secs: float = 0.0

    def describe(self) -> str:
        """Returns one phrase for the terminal."""
        text = f"{len(self.programs)} programs compiled in {self.secs:.1f} s"
        if self.num_cached:
            saved = max(self.saved_secs, 0.0)  # a tiny program may be made faster than read
            text += f", {self.num_cached} of them read from the cache ({saved:.1f} s saved)"
        return text


_lock = threading.Lock()
_current = Compiled()
_is_listening = False


def listen() -> None:
    """Begins to take note; what was compiled before is not known."""
    global _is_listening
    if not _is_listening:
        jax.monitoring.register_event_duration_secs_listener(_hear)
        _is_listening = True


def take() -> Compiled:
    """Returns what was compiled since the last call, in all threads."""
    global _current
    with _lock:
        taken, _current = _current, Compiled()
    return taken


def _hear(event: str, duration: float, **details: object) -> None:
    with _lock:
        if event == _COMPILED:
            _current.programs.append(str(details.get("fun_name", "unknown")))
            _current.secs += duration
        elif event == _FROM_CACHE:
            _current.num_cached += 1
            _current.saved_secs += duration


class StepWatch:
    """Tells when a step is compiled again.

    Args:
        step: the jitted function.
    """

    def __init__(self, step: object):
        self._step, self._calls, self._known = step, 0, 0
        self._shapes: dict[str, str] = {}

    def after_call(self, batch: PyTree) -> None:
        """Counts a call; warns if it compiled, unless it was one of the first two.

        Args:
            batch: that the step was called with, for what has changed.
        """
        self._calls += 1
        num_programs, shapes = self._step._cache_size(), _shapes(batch)
        if num_programs > self._known and self._calls > _NUM_FREE_STEPS:
            warnings.warn(
                f"the training step was compiled again at its call {self._calls}: "
                + (_changes(self._shapes, shapes) or "not because of the batch's shapes"),
                RuntimeWarning,
                stacklevel=2,
            )
        self._known, self._shapes = num_programs, shapes


def _shapes(batch: PyTree) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in batch.items()}


def _changes(old: dict[str, str], new: dict[str, str]) -> str:
    return ", ".join(
        f"{name} was {old.get(name, 'absent')} and is {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )
