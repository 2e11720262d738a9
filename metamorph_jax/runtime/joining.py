"""Meeting the other processes of a run, and parting from them, in order or at once.

jax keeps processes together: each sends a sign of life, and when one falls silent, all others are
ended. That happens inside jax's library, in its words, so that a *witness* (a small process beside
this one) adds what it means. A process that fails leaves at once; jax's orderly way would wait for
the others, who wait for this one.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from metamorph_jax.errors import report
from metamorph_jax.runtime.environment import Place, find_place

SILENCE_SECS = 30  # without a sign of life: a process is dead, and so is the run
_JOIN_SECS = 300
_REMIND_SECS = 20
_SHUTDOWN_SECS = 120
EXIT_LOST = 1
_GRACE_SECS = 3  # for others with the same error; without process 0, jax ends them before they tell

_WITNESS = "import sys; sys.stdin.buffer.read(1) or sys.stderr.write(sys.argv[1])"
_LOST = (
    "Every process of the run has to be started again; the same command goes on from the newest "
    "checkpoint.\n"
)
_witness: subprocess.Popen | None = None
_is_coordinator = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes if the environment names any; call it before jax has devices.

    With others, nothing but a good end or a sign to stop leaves the body: an error is told, and the
    process ends.

    Raises:
        UserError: the environment makes no sense, or the others cannot be met.
    """
    place = find_place(os.environ)
    if place is None:
        yield
        return
    _join(place)
    _start_witness(place)
    try:
        yield
    except BaseException as error:
        leave(error)
    _part()


def leave(error: BaseException) -> None:
    """Tells of an error and ends this process, without waiting for the others."""
    code = error.code if isinstance(error, SystemExit) else report(error)
    if isinstance(code, str):
        code = 1
    if code is None and is_lost(error):
        first = next(iter(str(error).splitlines()), "")
        sys.stderr.write(f"error: another process of the run cannot be reached: {first}\n{_LOST}")
        code = EXIT_LOST
    elif code is None or "--debug" in sys.argv:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_coordinator and not is_lost(error):
        time.sleep(_GRACE_SECS)
    _say_goodbye()
    os._exit(1 if code is None else code)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has died or cannot be reached."""
    signs = ("Gloo", "NCCL", "coordination service", "CoordinationService", "heartbeat")
    return any(sign in str(error) for sign in signs)


def _join(place: Place) -> None:
    """Waits for the others, tells whom it waits for, and gives up after a while."""
    import jax

    # SIGTERM is ours (signals.py); jax's own service would take it over.
    jax.config.update("jax_enable_preemption_service", False)
    # Collectives between CPU processes; no accelerator looks at it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    print(f"{place.describe()} on {socket.gethostname()}: joining the others", flush=True)
    global _is_coordinator
    how = "deactivate" if place.coordinator else None
    with _Deadline(place, _JOIN_SECS):
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            place.local_devices,
            cluster_detection_method=how,
            initialization_timeout=_JOIN_SECS + 60,  # the deadline is ours, for its message
            heartbeat_timeout_seconds=SILENCE_SECS,
            shutdown_timeout_seconds=_SHUTDOWN_SECS,
        )
    _is_coordinator = jax.process_index() == 0


class _Deadline:
    """Reminds of what is waited for, and ends the process when it was too long.

    jax ends a process that waits too long from inside its library, before any message of ours.
    """

    def __init__(self, place: Place, seconds: float):
        self._place, self._seconds, self._done = place, seconds, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._remind, name="joining", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _remind(self) -> None:
        begin = time.monotonic()
        whom = "all others" if self._place.index == 0 else "process 0 and all others"
        while not self._done.wait(_REMIND_SECS):
            waited = time.monotonic() - begin
            message = f"{self._place.describe()}: waiting for {whom} since {waited:.0f} s"
            if waited < self._seconds:
                print(message, file=sys.stderr, flush=True)
                continue
            sys.stderr.write(
                f"error: {message}; giving up. Check that all processes were started, with the "
                f"same coordinator address and number of processes, that {_reachable(self._place)} "
                "is process 0's host and that its port is open between the hosts\n"
            )
            sys.stderr.flush()
            os._exit(EXIT_LOST)  # not 2, since it may be enough to start again


def _part() -> None:
    """Waits until all are done, and ends what jax began."""
    import jax

    jax.distributed.shutdown()
    _say_goodbye()  # only now, since parting may fail, too


def _reachable(place: Place) -> str:
    """Returns the coordinator, and whether it answers from here."""
    if place.coordinator is None:
        return "the address that jax found"
    host, _, port = place.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return f"{place.coordinator} (which does not answer from here: {error})"
    return f"{place.coordinator} (which answers from here)"


def _start_witness(place: Place) -> None:
    """Starts the process that tells when this one ends without a goodbye."""
    global _witness
    message = (
        f"error: {place.describe()} on {socket.gethostname()} was ended. If nobody killed it and "
        "memory did not run out, another process died or cannot be reached, as the lines above "
        f"say. {_LOST}"
    )
    _witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS, message],
        stdin=subprocess.PIPE,
        start_new_session=True,  # what is sent to the group of this process is not for it
    )


def _say_goodbye() -> None:
    global _witness
    if _witness is not None:
        with contextlib.suppress(OSError):
            _witness.stdin.write(b".")
            _witness.stdin.close()
        _witness.wait()
        _witness = None
