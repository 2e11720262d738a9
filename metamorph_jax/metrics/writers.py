"""Where numbers of a run go: `metrics.jsonl` (always, exact) and TensorBoard event files.

Method names follow `clu.metric_writers`, which itself needs TensorFlow. What the numbers are is
decided by the training loop; `report/` reads them back through `read_metrics`.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamorph_jax.metrics.jsonl import drop_partial_line, read_objects
from metamorph_jax.metrics.tensorboard import EventFile
from metamorph_jax.typing import Array, Shaped

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tb"
Scalar = float | int | str


class MetricWriter:
    """Writes scalars and pictures of one run; use it in one process only.

    A process killed at any moment leaves at most one half-written last line, which the next writer
    removes.

    Args:
        workdir: the run's folder; created when missing.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._path = self._workdir / METRICS_FILE
        self._purge_step: int | None = None
        self._board = None
        drop_partial_line(self._path)
        self._file = self._open()

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Appends one line; texts, NaN and Inf stay out of TensorBoard.

        Floats are written so that reading them gives the same bits; NaN and infinities become the
        strings "nan", "inf" and "-inf", because JSON has no numbers for them.
        """
        values = {name: _python_scalar(value) for name, value in scalars.items()}
        line = {"step": int(step)} | {name: _json_scalar(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        numbers = {
            name: value
            for name, value in values.items()
            if not isinstance(value, str) and math.isfinite(value)
        }
        self._tensorboard().write_scalars(int(step), numbers)

    def write_images(
        self, step: int, images: Mapping[str, Shaped[Array, "height width 3"]]
    ) -> None:
        """Shows uint8 pictures in TensorBoard; `metrics.jsonl` does not mention them."""
        self._tensorboard().write_images(int(step), images)

    def truncate_after(self, step: int) -> None:
        """Forgets what was written for steps after `step`, before a resumed run repeats them.

        The file is replaced as a whole: a kill in between leaves the old one or the new one.
        """
        self._file.close()
        kept = [line for line, values in read_objects(self._path) if values.get("step", 0) <= step]
        replacement = self._path.with_suffix(".tmp")
        with open(replacement, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(replacement, self._path)
        self._file = self._open()
        if self._board is not None:
            self._board.close()
            self._board = None
        self._purge_step = step + 1

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files; the writer is of no use afterwards."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _open(self):
        """Returns the metrics file, opened for appending whole lines."""
        return open(self._path, "a", encoding="utf-8", buffering=1)

    def _tensorboard(self):
        """Returns the event writer, created at the first number so that readers pay nothing."""
        if self._board is None:
            self._board = EventFile(self._workdir / TENSORBOARD_FOLDER, self._purge_step)
        return self._board


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics file, oldest first; none if there is no file.

    The strings that stand for NaN and infinities are floats again. A half-written last line is
    left out.
    """
    spelled = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    return [
        {key: spelled.get(v, v) if isinstance(v, str) else v for key, v in values.items()}
        for _, values in read_objects(Path(workdir) / METRICS_FILE)
    ]


def _python_scalar(value: Any) -> Scalar:
    """Returns a zero-dimensional array as a Python number; others as they are."""
    return value.item() if hasattr(value, "item") else value


def _json_scalar(value: Scalar) -> Scalar:
    """Returns `value`, spelled out when JSON has no such number."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
