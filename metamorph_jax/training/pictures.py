"""Pictures of what is being learned, by another process: the periodic action of a run.

Every so many steps, when the next checkpoint is on disk, `metamorph_jax.visualizer.reconstruct`
paints held-out pictures from it. It computes on the host's CPU, since the accelerator is taken, and
gives way to everything else there. Whatever happens to it, training goes on.
"""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from metamorph_jax.checkpoints.folders import CHECKPOINTS, folder_of
from metamorph_jax.config.schema_run import PicturesConfig
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.writers import TENSORBOARD_FOLDER
from metamorph_jax.runtime.environment import ALONE
from metamorph_jax.signals import StopRequest

PICTURES_FOLDER, LOG_FILE = "pictures", "pictures.log"
_HELD = ".checkpoint"  # what is being painted from
_LAST_WAIT_SECS = 120.0  # at the end of a run
_TERM_SECS, _POLL_SECS = 5.0, 0.2
_logger = logging.getLogger(__name__)
# Away from the accelerator; and threads that wait do not spin (see report/painting.py).
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "1000"}
_ENVIRONMENT |= ALONE


def check_pictures(config: PicturesConfig | None) -> None:
    """Raises a UserError at once for what would fail each time."""
    if config is None:
        return
    for key in ("records", "image_root", "visualizer"):
        path = Path(getattr(config, key))
        is_there = path.is_file() if key == "records" else path.is_dir()
        if not is_there:
            kind = "file" if key == "records" else "folder"
            raise UserError(
                f"config.pictures.{key}: {path} is no {kind}; name one, or leave the section out"
            )


class PicturePainter:
    """Starts the painting process when it is due, and never two at a time.

    Args:
        config: None: it does nothing.
        workdir: of the run.
        first_step: of the run, from which it goes on.
    """

    def __init__(self, config: PicturesConfig | None, workdir: Path, first_step: int):
        self._config, self._workdir = config, workdir
        self._last_step = first_step  # at which one was due
        self._due: int | None = None
        self._process: subprocess.Popen | None = None

    def saved(self, step: int) -> None:
        """Takes note of a checkpoint that is being written; one is painted each interval."""
        if self._config is None:
            return
        interval = self._config.interval_steps
        if step // interval > self._last_step // interval:
            self._due = self._last_step = step

    def poll(self) -> None:
        """Starts what is due and ready, and reports what ended; to be called every step."""
        if self._process is not None:
            self._report_end()
        if self._due is None or self._process is not None:
            return
        checkpoint = folder_of(self._workdir / CHECKPOINTS, self._due)
        if checkpoint.is_dir():  # it has this name only once it is complete
            self._due = None
            self._start(self._hold(checkpoint))

    def finish(self, stop: StopRequest) -> None:
        """Waits for the last sheet, but not long, and not when the run is asked to stop."""
        deadline = time.monotonic() + _LAST_WAIT_SECS
        self.poll()
        while self._process is not None and not stop:
            if time.monotonic() > deadline:
                held = self._workdir / PICTURES_FOLDER / _HELD  # goes away with the process
                command = shlex.join(self._process.args[3:])  # without nice
                command = command.replace(str(held), str(self._workdir / CHECKPOINTS))
                _logger.warning("the last pictures took too long; this paints them: %s", command)
                return
            time.sleep(_POLL_SECS)
            self.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process if it is still there: nothing outlives the run."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)  # and the process that it waits for
        try:
            self._process.wait(_TERM_SECS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._forget()

    def _hold(self, checkpoint: Path) -> Path:
        """Returns a second name for a checkpoint, which stays when the run deletes it."""
        held = self._workdir / PICTURES_FOLDER / _HELD / checkpoint.name
        shutil.rmtree(held.parent, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, held, copy_function=os.link)
        except OSError:  # no hard links here: it lives as long as the run keeps it
            return checkpoint
        return held

    def _start(self, checkpoint: Path) -> None:
        """Starts the process; what it says goes into a file of the run."""
        config = self._config
        flags = {
            "checkpoint": checkpoint,
            "records": config.records,
            "image_root": config.image_root,
            "num_pictures": config.num_pictures,
            "visualizer": config.visualizer,
            "out": self._workdir / PICTURES_FOLDER,
            "tensorboard": self._workdir / TENSORBOARD_FOLDER,
        }
        command = [sys.executable, "-m", "metamorph_jax.visualizer.reconstruct"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        try:
            with open(self._workdir / LOG_FILE, "ab") as log:
                self._process = subprocess.Popen(
                    ["nice", "-n", "19", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | _ENVIRONMENT,
                    start_new_session=True,  # a group of its own, which Ctrl-C does not reach
                )
        except OSError as error:
            _logger.warning("pictures could not be painted: %s", error)

    def _report_end(self) -> None:
        """Forgets a process that ended, and warns if it failed."""
        code = self._process.poll()
        if code is None:
            return
        self._forget()
        if code:
            log = self._workdir / LOG_FILE
            _logger.warning("pictures were not painted (exit code %d); %s says why", code, log)

    def _forget(self) -> None:
        """Forgets the process, which has ended, and lets go of its checkpoint."""
        self._process = None
        shutil.rmtree(self._workdir / PICTURES_FOLDER / _HELD, ignore_errors=True)
