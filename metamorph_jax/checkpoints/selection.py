"""Which checkpoint to read: the newest one that verifies, or exactly the one that was asked for.

Process 0 reads and decides, all others follow; damaged checkpoints are set aside here.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import jax

from metamorph_jax.checkpoints import folders
from metamorph_jax.checkpoints.manifest import MANIFEST_FILE, DamagedCheckpointError, verify
from metamorph_jax.errors import UserError
from metamorph_jax.runtime.agreement import from_first

_logger = logging.getLogger(__name__)
_NO_STEP = -1
_REFUSED = -2


class Selector:
    """Verifies and chooses checkpoints of one directory; remembers what it has verified."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._verified: dict[str, list[tuple]] = {}  # file signatures of what was hashed already

    def choose(self, step: int | None, *, quarantine: bool) -> Path | None:
        """Returns the folder to read, the same in all processes; None: nothing was ever saved.

        Args:
            step: this one and no other; None: the newest that verifies.
            quarantine: rename damaged ones, rather than only skip them.

        Raises:
            UserError: nothing usable is left, `step` is absent or damaged, or the newest intact
                checkpoint has another format version.
        """
        refusal = None
        choice = _NO_STEP
        if jax.process_index() == 0:
            try:
                found = self._newest_intact(quarantine) if step is None else self._intact(step)
                choice = _NO_STEP if found is None else found
            except UserError as error:
                refusal, choice = error, _REFUSED
        choice = from_first(choice)
        if choice == _REFUSED:
            raise refusal or UserError(f"{self._directory}: process 0 refused; its log says why")
        return None if choice == _NO_STEP else folders.folder_of(self._directory, choice)

    def _intact(self, step: int) -> int:
        """Returns `step` if that very checkpoint verifies."""
        folder = folders.folder_of(self._directory, step)
        if not folder.exists():
            raise UserError(
                f"there is no checkpoint of step {step} in {self._directory}; "
                f"complete ones: {complete_steps(self._directory) or 'none'}"
            )
        try:
            self._verify_once(folder)
        except DamagedCheckpointError as damage:
            raise UserError(
                f"checkpoint {folder} is damaged: {damage}. A step asked for by number is never "
                "replaced by another; --resume=auto takes the newest one that verifies"
            ) from damage
        return step

    def _newest_intact(self, quarantine: bool) -> int | None:
        """Returns the newest step that verifies, None if the directory never had one."""
        for step in folders.final_steps(self._directory):
            folder = folders.folder_of(self._directory, step)
            try:
                self._verify_once(folder)
                return step
            except DamagedCheckpointError as damage:
                if not folder.exists():  # deleted meanwhile by the run that owns the directory
                    return self._newest_intact(quarantine)
                place = folders.set_aside(folder, "damaged") if quarantine else folder
                _logger.error(
                    "CHECKPOINT %d IS DAMAGED: %s. It is kept as %s; trying the one before.",
                    step,
                    damage,
                    place,
                )
        unusable = folders.final_names(self._directory) + folders.set_aside_names(self._directory)
        if unusable:
            raise UserError(
                f"no checkpoint in {self._directory} is usable ({', '.join(unusable)}), and this "
                "run did not begin from nothing. The log lines above say which files are damaged; "
                "bring back a copy of them, or start anew in another --workdir"
            )
        return None

    def _verify_once(self, folder: Path) -> None:
        """Verifies `folder`, unless that was done before and no file has changed since."""
        now = list(_signatures(folder))
        if not now or self._verified.get(folder.name) != now:
            verify(folder)
            self._verified[folder.name] = now


def complete_steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in `directory` that have a manifest, newest first."""
    return [
        step
        for step in folders.final_steps(directory)
        if (folders.folder_of(directory, step) / MANIFEST_FILE).exists()
    ]


def _signatures(folder: Path) -> Iterator[tuple]:
    """Yields name, size, inode and times of change of every file below `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            yield path.as_posix(), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns
