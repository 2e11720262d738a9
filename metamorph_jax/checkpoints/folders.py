"""Names of checkpoint folders, and what is done with those that are not checkpoints.

00000123               a complete checkpoint of step 123; a name without suffix means complete
00000123.tmp-4711      being written, or being deleted, by process 4711
00000123.damaged-1     failed verification; kept for a post-mortem, never read again
00000123.superseded-1  made obsolete by a run that went on from an earlier step; never read again
"""

import logging
import os
import re
import shutil
from pathlib import Path

from metamorph_jax.checkpoints.manifest import sync_folder
from metamorph_jax.errors import UserError

_logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"  # in the folder of a run
_FINAL = re.compile(r"\d{8,}")
_TEMPORARY = re.compile(r"\d{8,}\.tmp-(\d+)")
_SET_ASIDE = re.compile(r"\d{8,}\.(damaged|superseded)-\d+")


def folder_of(directory: Path, step: int) -> Path:
    """Returns the folder that the complete checkpoint of `step` has or would have."""
    return directory / f"{step:08d}"


def temporary_folder_of(directory: Path, step: int, process_id: int) -> Path:
    """Returns the folder in which `process_id` prepares (or deletes) the checkpoint of `step`."""
    return directory / f"{step:08d}.tmp-{process_id}"


def final_steps(directory: Path) -> list[int]:
    """Returns the steps of all folders with a final name, newest first."""
    return sorted(map(int, final_names(directory)), reverse=True)


def final_names(directory: Path) -> list[str]:
    """Returns the names of all folders with a final name."""
    return sorted(name for name in _names(directory) if _FINAL.fullmatch(name))


def set_aside_names(directory: Path) -> list[str]:
    """Returns the names of damaged and superseded checkpoints."""
    return sorted(name for name in _names(directory) if _SET_ASIDE.fullmatch(name))


def set_aside(folder: Path, reason: str) -> Path:
    """Renames `folder` to "<step>.<reason>-N" with the first free N, and returns the new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.{reason}-{number}")).exists():
        number += 1
    folder.rename(target)
    sync_folder(folder.parent)
    return target


def publish(temporary: Path, final: Path) -> None:
    """Gives a completely written folder its final name, in one step that survives a power cut.

    An older checkpoint of the same step gives way (it is set aside for an instant, then deleted).
    """
    older = set_aside(final, "superseded") if final.exists() else None
    temporary.rename(final)
    sync_folder(final.parent)
    if older is not None:
        shutil.rmtree(older, ignore_errors=True)


def delete(directory: Path, step: int) -> None:
    """Deletes the checkpoint of `step`; a half deleted one never has a final name."""
    doomed = temporary_folder_of(directory, step, os.getpid())
    folder_of(directory, step).rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes left behind; folders of living processes stay."""
    for name in _names(directory):
        match = _TEMPORARY.fullmatch(name)
        if match and not _is_other_living_process(int(match.group(1))):
            _logger.info("removing the unfinished checkpoint %s", directory / name)
            shutil.rmtree(directory / name, ignore_errors=True)


def find_checkpoints(path: Path, step: int | None) -> tuple[Path, int | None]:
    """Returns (folder of all checkpoints, step) of a run's folder, or of any folder below.

    Raises:
        UserError: there is none, or `step` contradicts the path.
    """
    if _FINAL.fullmatch(path.name) and path.is_dir():
        own = int(path.name)
        if step is not None and step != own:
            raise UserError(f"{path} is the checkpoint of step {own}, not {step}; leave one out")
        return path.parent, own
    if (path / CHECKPOINTS).is_dir():
        return path / CHECKPOINTS, step
    if path.is_dir() and any(_FINAL.fullmatch(entry.name) for entry in path.iterdir()):
        return path, step
    raise no_checkpoint(path)


def no_checkpoint(path: str | Path) -> UserError:
    """Returns the error of a path that holds no checkpoint."""
    return UserError(
        f"{path}: there is no checkpoint; expected the folder of a run, which holds "
        f"{CHECKPOINTS}/ with folders such as 00000500 "
        "(python -m metamorph_jax.train writes one)"
    )


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_other_living_process(process_id: int) -> bool:
    if process_id == os.getpid():
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
