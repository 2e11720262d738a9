"""TensorBoard event files, one event a step, through tensorboardX's record format.

tensorboardX's own `SummaryWriter` would start a queue and a thread, and import torch wherever that
is installed; a training process has use for neither. `writers.py` decides what is written.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from metamorph_jax.typing import Array, Shaped


class EventFile:
    """One event file of a TensorBoard folder.

    Args:
        folder: created when missing.
        purge_step: events of earlier files at or after this step are hidden by TensorBoard; None
            hides nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], purge_step: int | None = None):
        board = _import_tensorboardx()
        self._event, self._summary = board.proto.event_pb2, board.summary
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = board.RecordWriter(str(Path(folder) / name))
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            log = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(step=purge_step, session_log=log)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event with all numbers of a step."""
        parts = [self._summary.scalar(name, float(value)) for name, value in scalars.items()]
        self._write(step=step, summary=self._merge(parts))

    def write_images(
        self, step: int, images: Mapping[str, Shaped[Array, "height width 3"]]
    ) -> None:
        """Adds one event with all uint8 pictures of a step."""
        parts = [self._summary.image(name, x, dataformats="HWC") for name, x in images.items()]
        self._write(step=step, summary=self._merge(parts))

    def flush(self) -> None:
        """Forces everything to disk."""
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()

    def _merge(self, summaries: list):
        """Returns one summary with the values of several."""
        merged = self._summary.Summary()
        for summary in summaries:
            merged.value.extend(summary.value)
        return merged

    def _write(self, **fields) -> None:
        """Appends an event that happens now."""
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def _import_tensorboardx():
    """Returns tensorboardX, imported without torch.

    It imports torch if it can, just to know the tensor class: a second and 300 MB that a training
    process would pay for nothing. A None in `sys.modules` makes that import fail, as tensorboardX
    expects where torch is missing.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        import tensorboardX
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX
