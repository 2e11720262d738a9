"""Wall-clock seconds of the phases of a run, one line per finished phase in `phases.jsonl`.

Every front door wraps its work in `phase(workdir, name)`; the report shows the table.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metamorph_jax.metrics.jsonl import drop_partial_line, read_objects

PHASES_FILE = "phases.jsonl"


@contextmanager
def phase(workdir: str | os.PathLike[str], name: str, is_written: bool = True) -> Iterator[None]:
    """Times the body and appends {"phase": name, "seconds": s}, if the body ends well.

    A phase that is interrupted and resumed leaves one line per finished part; readers add them up.
    """
    start = time.monotonic()
    yield
    if is_written:
        record_phase(workdir, name, time.monotonic() - start)


def record_phase(workdir: str | os.PathLike[str], name: str, seconds: float) -> None:
    """Appends one finished phase whose seconds were measured elsewhere."""
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    drop_partial_line(folder / PHASES_FILE)
    with open(folder / PHASES_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps({"phase": name, "seconds": seconds}) + "\n")


def read_phases(workdir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns seconds by phase in order of first appearance; repeated phases are added up."""
    seconds: dict[str, float] = {}
    for _, entry in read_objects(Path(workdir) / PHASES_FILE):
        seconds[entry["phase"]] = seconds.get(entry["phase"], 0.0) + entry["seconds"]
    return seconds
