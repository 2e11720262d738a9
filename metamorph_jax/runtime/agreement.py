"""What the processes of a run do once, or only if all of them can, or at the same step.

Texts go through the service that jax runs in process 0 and need no device; so they may be waited
for while devices work, and for hours. All processes call these functions in the same order, from
their main threads. With one process everything here is the plain call.
"""

import itertools
import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamorph_jax.errors import UserError
from metamorph_jax.signals import Stopped, StopRequest

T = TypeVar("T")
_PATIENCE_MS = 5_000  # of one call into jax's library, which signals do not interrupt
_VISIBLE_SECS = 20.0  # a network disk may show a new file this late
_STOPPED = "stopped"
_turns = itertools.count()


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """Returns the texts of all processes, in their order; waits for them."""
    if jax.process_count() == 1:
        return [text]
    turn = f"metamorph_jax/{next(_turns)}"
    if not is_first():
        _tell(f"{turn}/{jax.process_index()}", text)
        return json.loads(_ask(f"{turn}/all"))
    texts = [text, *(_ask(f"{turn}/{index}") for index in range(1, jax.process_count()))]
    _tell(f"{turn}/all", json.dumps(texts))
    return texts


def from_first(value: int) -> int:
    """Returns process 0's `value` in every process."""
    return int(exchange(str(int(value)))[0])


def together(what: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, once all processes have done theirs.

    Args:
        what: is done, as in "could not WHAT".
        work: of this process; calls nothing of this module.

    Raises:
        UserError: here, or in another process, which is named then.
        Stopped: a process was asked to stop.
    """
    if jax.process_count() == 1:
        return work()
    result, problem = None, None
    try:
        result = work()
    except (UserError, OSError, Stopped) as error:
        problem = error
    if isinstance(problem, Stopped):
        mine = _STOPPED
    else:
        mine = f"{socket.gethostname()}: {problem}" if problem is not None else ""
    told = exchange(mine)
    if problem is not None:
        raise problem
    if _STOPPED in told:
        raise Stopped
    failed = [f"process {index} on {text}" for index, text in enumerate(told) if text]
    if failed:
        raise UserError(f"could not {what} in {len(failed)} of {len(told)} processes; {failed[0]}")
    return result


def first_then_others(what: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns; process 0 does it alone, the others find what it has written.

    Args:
        what: is done, as in "could not WHAT".
        work: calls nothing of this module.

    Raises:
        UserError, Stopped: see `together`.
    """
    if jax.process_count() == 1:
        return work()
    done = together(what, work if is_first() else _nothing)
    done_later = together(what, _nothing if is_first() else work)
    return done if is_first() else done_later


def any_stop(stop: StopRequest) -> bool:
    """Returns whether any process was asked to stop; from then on, all are."""
    asked = next(filter(None, exchange(stop.signal_name or "")), None)
    if asked is not None:
        stop.ask(asked)
    return bool(stop)


def check_same(what: str, value: str) -> None:
    """Raises a UserError, in all processes, unless `value` is the same in all."""
    told = exchange(json.dumps([socket.gethostname(), value]))
    hosts, values = zip(*map(json.loads, told), strict=True)
    others = [index for index in range(len(values)) if values[index] != values[0]]
    if others:
        raise UserError(
            f"{what} differ between process 0 on {hosts[0]} and process {others[0]} on "
            f"{hosts[others[0]]}; all hosts need the same files, recipe and versions"
        )


def check_shared(folder: Path) -> None:
    """Makes a folder; raises a UserError unless all processes see the same one there."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{from_first(time.time_ns())}"

    def leave_token() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            token.touch()

    def find_token() -> None:
        deadline = time.monotonic() + _VISIBLE_SECS
        while not token.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{folder.absolute()} is not the folder that process 0 sees under this name; "
                    "a run over several hosts needs a folder that they share (NFS, Lustre, a "
                    "mounted bucket): name one with --workdir"
                )
            folder.exists() and list(folder.iterdir())  # makes some network disks look again
            time.sleep(0.1)

    together(f"make {folder}", leave_token)
    try:
        together(f"share {folder}", find_token)
    finally:
        if is_first():
            token.unlink(missing_ok=True)


class Vote:
    """Whether any process wants to end, or has other data than one that should have the same.

    That is told to all at the same step without waiting for devices: each call starts a tiny
    exchange between all devices, queued behind the steps so far, and reads the one before, which
    the last step has waited for already.

    Args:
        mesh: of all devices.
        groups: for each of `mesh.devices.flat`, which group it is of; those of one have the same
            marks.
    """

    def __init__(self, mesh: Mesh, groups: Sequence[int]):
        self._devices, self._groups = mesh.devices.flat, groups
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._gather = jax.jit(lambda told: told, out_shardings=replicated)
        self._asked: jax.Array | None = None
        self._differing: tuple[int, int] | None = None

    def __call__(self, wish: bool, marks: Sequence[int]) -> bool:
        """Returns whether a process wished to end, or marks differed, one call ago; alone: `wish`.

        Args:
            wish: of this process.
            marks: 31 bits for each device; only those of this process are used.
        """
        if jax.process_count() == 1:
            return wish
        before = self._asked
        mine = np.array([(wish, mark) for mark in marks], np.int32)
        shape = (len(self._groups), 2)
        told = jax.make_array_from_callback(shape, self._sharding, lambda index: mine[index])
        self._asked = self._gather(told)
        return before is not None and self._read(np.asarray(before))

    def _read(self, told: np.ndarray) -> bool:
        first: dict[int, int] = {}
        for device, group in enumerate(self._groups):
            other = first.setdefault(group, device)
            if told[device, 1] != told[other, 1]:
                pair = self._devices[other].process_index, self._devices[device].process_index
                self._differing = self._differing or pair
        return bool(told[:, 0].any()) or self._differing is not None

    def check(self, problem: str) -> None:
        """Raises a UserError, in all processes, if marks differed: whose, and `problem`."""
        if self._differing is not None:
            hosts = exchange(socket.gethostname())
            who = " and ".join(f"{index} on {hosts[index]}" for index in self._differing)
            raise UserError(f"processes {who} {problem}")


def _nothing() -> None:
    """The work of who waits."""


def _client():
    # Not public, but what jax's own checkpoint library uses; its public functions all need devices.
    from jax._src import distributed

    return distributed.global_state.client


def _tell(key: str, text: str) -> None:
    _client().key_value_set(key, text)


def _ask(key: str) -> str:
    """Returns what a process tells under a key; a signal is seen while this waits."""
    while True:
        try:
            return _client().blocking_key_value_get(key, _PATIENCE_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
