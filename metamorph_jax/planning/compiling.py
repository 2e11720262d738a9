"""The real train step of a stage, compiled for a pod that is not here.

Same functions as in training: `training/program.py` for the step, `sharding/mesh.py` for the mesh.
"""

import contextlib
import dataclasses
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import jax
from jax.sharding import Mesh

from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.planning.hlo import Module, parse_module
from metamorph_jax.training.program import StageProgram, abstract_batch, stage_program

_TOO_MUCH = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a stage.

    Attributes:
        module: the program; None if it needs more memory than there is.
        argument_bytes: of state and batch, per device, as they lie in memory.
        temporary_bytes: room for everything that lives only during the step, per device.
        live_bytes: of it, what holds an array at the fullest moment; the rest are gaps between
            arrays. 0 if the program is None.
        other_bytes: the program itself, and results that are no part of the state.
        needed_bytes: in all.
        seconds: that compiling took.
    """

    module: Module | None
    argument_bytes: float
    temporary_bytes: float
    live_bytes: float
    other_bytes: float
    needed_bytes: float
    seconds: float


def lower_stage(config: RunConfig, stage: StageConfig, mesh: Mesh) -> tuple[StageProgram, object]:
    """Returns the program of a stage, and its step lowered for `mesh`; allocates nothing."""
    program = stage_program(config, stage, mesh, (0, 1))
    with jax.set_mesh(mesh):
        batch = abstract_batch(config.model, stage, mesh)
        return program, program.train_step.lower(program.layout.abstract, batch)


def compile_lowered(lowered: object, label: str) -> Compiled:
    """Returns what the compiler makes of a lowered step, with a line of progress meanwhile.

    Args:
        lowered: from `lower_stage`.
        label: what is compiled, for people.
    """
    start = time.monotonic()
    try:
        with ticking(f"compiling {label}"), interruptible():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_it_needed(str(error))
        if needed is None:
            raise
        return Compiled(None, 0.0, 0.0, 0.0, 0.0, needed, time.monotonic() - start)
    memory = compiled.memory_analysis()
    other = memory.generated_code_size_in_bytes
    other += max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(
        module=parse_module(compiled.as_text()),
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        # The compiler's peak has state and batch in it.
        live_bytes=min(temporaries, max(0, memory.peak_memory_in_bytes - arguments)),
        other_bytes=other,
        needed_bytes=arguments + temporaries + other,
        seconds=time.monotonic() - start,
    )


def bytes_it_needed(message: str) -> float | None:
    """Returns how much memory a program needed that did not fit; None: it failed otherwise."""
    for pattern in _TOO_MUCH:
        match = pattern.search(message)
        if match:
            return float(match.group(1)) * _UNITS[match.group(2)]
    return None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C end the process at once while the body runs, as nothing is being written.

    The compiler does not come back to Python for minutes, so a KeyboardInterrupt would wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ticking(
    label: str, stream: TextIO | None = None, interval_secs: float = 10.0
) -> Iterator[None]:
    """Says every few seconds how long the body has taken, and at the end how long it took.

    Args:
        label: what is done.
        stream: where to; None: standard error.
        interval_secs: between lines; a terminal has one that changes every second.
    """
    stream = sys.stderr if stream is None else stream
    start, done, is_terminal = time.monotonic(), threading.Event(), stream.isatty()

    def tell(end: str) -> None:
        stream.write(f"{label} ... {time.monotonic() - start:.0f} s{end}")
        stream.flush()

    def tick() -> None:
        while not done.wait(1.0 if is_terminal else interval_secs):
            tell("\r" if is_terminal else "\n")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tell("\n")
