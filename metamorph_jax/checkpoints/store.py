"""Save in the background, restore the newest checkpoint that verifies, fall back to the one before.

What a caller may rely on (each promise has a test that breaks something on purpose):

    - a folder with a final name is complete: it appears by one rename, after everything in it, the
      manifest last, has been forced to disk; a kill at any instant leaves older ones as they were
    - damage to any file is found before the arrays are used, and the previous checkpoint is taken
    - older checkpoints are deleted only after a newer one is complete; at least two are kept
    - if there were checkpoints and none is usable, that is an error, never a start from step 0

The directory must be on a file system with atomic rename (any POSIX one). When to save is decided
in training/; which checkpoint is read, in selection.py; what the arrays are called, in naming.py.
"""

import errno
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from metamorph_jax.checkpoints import folders
from metamorph_jax.checkpoints.arrays import ArrayWriter, load_orbax, read_arrays
from metamorph_jax.checkpoints.manifest import read_manifest, write_durably, write_manifest
from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.naming import ArraySpec, array_specs, check_same_arrays
from metamorph_jax.checkpoints.selection import Selector, complete_steps
from metamorph_jax.errors import UserError
from metamorph_jax.runtime.agreement import exchange, from_first
from metamorph_jax.trees import flatten

_logger = logging.getLogger(__name__)
META_FILE = "meta.json"
PARAMS = "params/"


class SaveError(UserError):
    """A save that failed, and of which step."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class CheckpointStore:
    """The checkpoints of one run, in one directory.

    With several processes every one of them makes a store on the same (shared) directory and calls
    the same methods in the same order; process 0 decides, verifies and publishes.

    Args:
        directory: holds one folder per checkpoint; made when the first one is saved.
        keep: newest complete checkpoints kept, at least 2.

    Attributes:
        directory: the same, as an absolute path.

    Raises:
        UserError: `keep` is below 2.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        if keep < 2:
            raise UserError(
                f"checkpoint.keep={keep}: at least 2 checkpoints are kept, so that one is left "
                "when the newest turns out to be damaged"
            )
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._selector = Selector(self.directory)
        self._thread: threading.Thread | None = None
        self._saving: int | None = None  # the step of a save that no process has waited for
        self._failures: list[SaveError] = []  # of the saves since the last one that succeeded
        self._is_swept = False
        load_orbax()  # here, so that the first save does not stall the training loop

    def save(self, step: int, state: PyTree, meta: CheckpointMeta) -> None:
        """Copies `state` to the host, and writes and publishes it in the background.

        Waits first if the previous save is still under way. A save that fails leaves the older
        checkpoints as they are, is logged as an error, and does not stop the run; the second one in
        a row does, at the next call.

        Args:
            step: global step; an existing checkpoint of the same step is replaced, those of later
                steps (of a run that went on from an earlier one) are set aside.
            state: dicts, tuples, named tuples or flax.struct dataclasses of jax.Arrays, sharded or
                not. They may be donated as soon as this returns.
            meta: stored beside the arrays; `meta.step` must be `step`.

        Raises:
            UserError: the last two saves failed.
            ValueError, TypeError: `meta` or a leaf of `state` is not what it should be.
        """
        if meta.step != step:
            raise ValueError(f"save(step={step}) with meta.step={meta.step}")
        self._join()
        if len(self._failures) >= 2:
            raise self._failures[-1]
        named = flatten(state)
        specs = array_specs(named)
        self._saving = step
        temporary = folders.temporary_folder_of(self.directory, step, from_first(os.getpid()))
        try:
            self._make_folder(temporary)
            writer = ArrayWriter()
            writer.start(temporary, named)
        except OSError as error:
            self._abandon(temporary, error, specs, step)
            return
        arguments = (writer, temporary, specs, meta)
        self._thread = threading.Thread(target=self._finish, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last save is complete on disk.

        Call it before the process ends: a save cannot be finished while the interpreter shuts down.

        Raises:
            UserError: the last save failed, so the state given to it exists nowhere but in memory.
        """
        self._join()
        if self._failures:
            raise self._failures[-1]

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints (those with a manifest), newest first."""
        return complete_steps(self.directory)

    def restore(
        self, abstract_state: PyTree, step: int | None = None
    ) -> tuple[PyTree, CheckpointMeta] | None:
        """Returns (state, meta), or None if nothing was ever saved here.

        Every file is hashed first (see `manifest.verify` for what that costs). A checkpoint that
        fails is renamed to "<step>.damaged-N", an error is logged, and the one before is used.

        Args:
            abstract_state: like the state, with jax.ShapeDtypeStruct leaves; their shardings say
                where the arrays go, on any mesh and number of devices.
            step: this checkpoint and no other; None: the newest one that verifies.

        Raises:
            UserError: nothing usable is left; `step` is absent or damaged; another format version;
                or the checkpoint is of another model (found before anything is allocated).
        """
        self._join()
        self._sweep()
        folder = self._selector.choose(step, quarantine=True)
        if folder is None:
            return None
        wanted = flatten(abstract_state)
        check_same_arrays(array_specs(wanted), read_manifest(folder).arrays, str(folder))
        return _rebuild(abstract_state, read_arrays(folder, wanted)), read_meta_file(folder)

    def restore_params(
        self, abstract_params: PyTree, step: int | None = None
    ) -> tuple[PyTree, CheckpointMeta]:
        """Returns (parameters, meta) without reading any optimiser state; renames nothing.

        For generation and export: it may run while a training run writes to the same directory.

        Args:
            abstract_params: like `state["params"]`, with jax.ShapeDtypeStruct leaves; arrays of
                floating-point numbers are cast to the dtypes given here.
            step: as in `restore`.

        Raises:
            UserError: as in `restore`, and if there is no checkpoint at all.
        """
        self._join()
        folder = self._selector.choose(step, quarantine=False)
        if folder is None:
            raise UserError(
                f"there is no checkpoint in {self.directory}; expected the folder `checkpoints` "
                "of a run, with subfolders such as 00000500"
            )
        wanted = {PARAMS + name: leaf for name, leaf in flatten(abstract_params).items()}
        arrays = read_manifest(folder).arrays
        stored = {name: spec for name, spec in arrays.items() if name.startswith(PARAMS)}
        check_same_arrays(array_specs(wanted), stored, str(folder), cast_floats=True)
        return _rebuild(abstract_params, read_arrays(folder, wanted)), read_meta_file(folder)

    def read_meta(self, step: int | None = None) -> CheckpointMeta | None:
        """Returns the metadata of the newest checkpoint that verifies, None if there never was one.

        A `restore` right after it does not hash the files again.

        Raises:
            UserError: as in `restore`.
        """
        self._join()
        folder = self._selector.choose(step, quarantine=False)
        return None if folder is None else read_meta_file(folder)

    def _make_folder(self, temporary: Path) -> None:
        """Makes the folder of a save in process 0; all processes learn whether that worked."""
        problem = None
        if jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._sweep()
                temporary.mkdir()
            except OSError as error:
                problem = error
        if from_first(problem is not None):
            raise problem or OSError(f"process 0 could not make {temporary}")

    def _finish(
        self,
        writer: ArrayWriter,
        temporary: Path,
        specs: dict[str, ArraySpec],
        meta: CheckpointMeta,
    ) -> None:
        """The background part of a save: wait for the arrays, write the rest, rename, tidy up."""
        try:
            writer.finish()
            if jax.process_index() == 0:
                write_durably(temporary / META_FILE, meta.to_json())
                write_manifest(temporary, specs)
                folders.publish(temporary, folders.folder_of(self.directory, meta.step))
        except Exception as error:  # nobody called this; the next call of the store raises it
            self._abandon(temporary, error, specs, meta.step)
            return
        if jax.process_index() == 0:
            self._retire(meta.step)

    def _abandon(
        self, temporary: Path, error: Exception, specs: Mapping[str, ArraySpec], step: int
    ) -> None:
        """Removes an unfinished save, logs why it failed, and remembers it for the next call."""
        is_full = is_disk_full(error)
        reason = self._room(specs) if is_full else f"{type(error).__name__}: {error}"
        shutil.rmtree(temporary, ignore_errors=True)
        failure = SaveError(
            f"the checkpoint of step {step} was not saved in {self.directory}: {reason}. "
            f"Complete and untouched there: {self.steps() or 'none'}",
            step,
        )
        failure.__cause__ = error
        self._failures.append(failure)
        is_foreseen = is_full or isinstance(error, OSError)
        _logger.error("%s", failure, exc_info=None if is_foreseen else error)

    def _room(self, specs: Mapping[str, ArraySpec]) -> str:
        needed = sum(_num_bytes(spec) for spec in specs.values())
        place = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        return (
            f"no space left: about {needed:,} bytes are needed, {shutil.disk_usage(place).free:,} "
            "are free. Make room, lower checkpoint.keep, or choose another disk with --workdir"
        )

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints after `step`: the run goes on from there, on another branch."""
        if jax.process_index() != 0:
            return
        for later in (other for other in self.steps() if other > step):
            target = folders.set_aside(folders.folder_of(self.directory, later), "superseded")
            message = "the run went on from before step %d; its checkpoint is kept as %s"
            _logger.error(message, later, target)

    def _retire(self, step: int) -> None:
        """Now that `step` is complete: sets later ones aside, deletes all but the newest."""
        try:
            self.set_aside_after(step)
            for old in self.steps()[self._keep :]:
                folders.delete(self.directory, old)
        except OSError as error:
            _logger.error("checkpoint %d is saved, but tidying up after it failed: %s", step, error)

    def _sweep(self) -> None:
        """Once per store: removes what killed processes left behind."""
        if not self._is_swept and jax.process_index() == 0:
            folders.remove_leftovers(self.directory)
        self._is_swept = True

    def _join(self) -> None:
        """Waits for the save in flight, in every process; it is good only if it is in all."""
        if self._saving is None:
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        step, self._saving = self._saving, None
        own = [failure for failure in self._failures if failure.step == step]
        failed = [index for index, text in enumerate(exchange(str(len(own)))) if text != "0"]
        if not failed:
            self._failures.clear()
        elif not own:
            message = f"the checkpoint of step {step} was not saved by process {failed[0]}"
            self._failures.append(SaveError(f"{message}; its log says why", step))


def _rebuild(abstract: PyTree, arrays: Mapping[str, jax.Array]) -> PyTree:
    """Returns `abstract` with its leaves replaced; `arrays` is in the order of the leaves."""
    return jax.tree.unflatten(jax.tree.structure(abstract), list(arrays.values()))


def read_meta_file(folder: Path) -> CheckpointMeta:
    """Returns what a checkpoint's folder says about itself."""
    path = folder / META_FILE
    return CheckpointMeta.from_json(path.read_text(encoding="utf-8"), str(path))


def _num_bytes(spec: ArraySpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * jax.numpy.dtype(spec.dtype).itemsize


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one it was raised from, says that there is no room on the disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Orbax's storage library reports errors of the system as text.
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
