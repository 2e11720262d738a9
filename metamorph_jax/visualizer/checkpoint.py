"""Visualizers on disk: folders of safetensors that appear whole or not at all.

    RUN/checkpoints/00000800/config.json                   the model (VisualizerConfig)
                             model.safetensors             its weights
                             training_state.safetensors    Adam moments, step, recipe
                             manifest.json                 size and SHA-256 of the three

A folder is written beside its final place, forced to disk and renamed. What damage it takes later
shows in the manifest; then the one before it is used. `load_visualizer` takes a run, one of its
checkpoints, or a folder that holds only config.json and model.safetensors.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metamorph_jax.config.loading import from_dict, to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.dataset import ENCODER
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.schema import VisualizerConfig

CHECKPOINTS = "checkpoints"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
STATE_FILE, MANIFEST_FILE = "training_state.safetensors", "manifest.json"
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What resuming needs besides the weights.

    Attributes:
        step: updates done.
        tensors: the optimiser's moments by parameter name.
        recipe: the run's recipe as nested dicts.
        data_fingerprint: of the pictures it was trained on.
    """

    step: int
    tensors: dict[str, Tensor]
    recipe: dict[str, Any]
    data_fingerprint: str


def save_checkpoint(run: Path, visualizer: Visualizer, state: TrainingState, keep: int) -> Path:
    """Writes the checkpoint of `state.step` and removes all but the newest `keep`.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are as before.
    """
    folder = run / CHECKPOINTS / f"{state.step:08d}"
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, visualizer, state)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{folder}: the checkpoint of step {state.step} could not be written ({error}); "
            "earlier ones are intact. Free some space and run the same command again"
        ) from error
    for step in complete_steps(run)[keep:]:
        shutil.rmtree(run / CHECKPOINTS / f"{step:08d}")
    return folder


def complete_steps(run: Path) -> list[int]:
    """Returns the steps of a run's checkpoints, newest first."""
    folders = (run / CHECKPOINTS).glob("[0-9]" * 8)
    return sorted((int(folder.name) for folder in folders), reverse=True)


def remove_leftovers(run: Path) -> None:
    """Removes half-written checkpoints of killed processes; one process at a time trains a run."""
    for folder in (run / CHECKPOINTS).glob("*.tmp-*"):
        shutil.rmtree(folder)


def set_aside_checkpoints(run: Path) -> Path | None:
    """Renames a run's checkpoints, which a fresh start must not mix with its own."""
    folder = run / CHECKPOINTS
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{CHECKPOINTS}.superseded-{number}")).exists():
        number += 1
    return folder.rename(target)


def newest_intact(run: Path) -> Path | None:
    """Returns the newest checkpoint that its manifest confirms, None if there is none at all.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    found = []
    for step in complete_steps(run):
        folder = run / CHECKPOINTS / f"{step:08d}"
        damage = find_damage(folder)
        if damage is None:
            return folder
        _logger.warning("%s is damaged (%s); trying the one before", folder, damage)
        found.append(f"{folder}: {damage}")
    if found:
        raise UserError(
            "all checkpoints are damaged, starting over needs --resume=never:\n  "
            + "\n  ".join(found)
        )
    return None


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, in words, or None."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
        for name, record in manifest.items():
            if _hash_file(folder / name) != record:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError):
        return f"{MANIFEST_FILE} is not readable"
    return None


def load_visualizer(folder: Path) -> Visualizer:
    """Returns the model of a run, of one of its checkpoints or of a plain folder, for painting.

    Raises:
        UserError: nothing there, or files missing, damaged or of another model.
    """
    where = folder
    if not (folder / CONFIG_FILE).is_file():
        newest = newest_intact(folder)
        if newest is None:
            raise UserError(
                f"{folder}: no visualizer here: neither {CONFIG_FILE} nor {CHECKPOINTS}/; train "
                "one with python -m metamorph_jax.visualizer.train"
            )
        where = newest
    elif (folder / MANIFEST_FILE).exists() and (damage := find_damage(folder)):
        raise UserError(f"{folder}: {damage}; use another checkpoint of the run")
    visualizer = Visualizer(_read_config(where / CONFIG_FILE))
    metadata = load_weights(visualizer, where / WEIGHTS_FILE)
    visualizer.encoder_fingerprint = metadata.get(ENCODER)
    return visualizer.eval()


def load_weights(module: nn.Module, file: Path) -> dict[str, str]:
    """Copies the weights in `file` into `module`; returns the file's metadata.

    Raises:
        UserError: no safetensors file, or its tensors are not exactly those of `module`.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {name: opened.get_tensor(name) for name in opened.keys()}
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from None
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - stored.keys())
    surplus = sorted(stored.keys() - wanted.keys())
    differing = [
        f"{name} is {list(stored[name].shape)}, expected {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & stored.keys())
        if stored[name].shape != wanted[name].shape
    ]
    if missing or surplus or differing:
        raise UserError(
            f"{file}: weights of another model than its {CONFIG_FILE} says: {len(missing)} missing "
            f"{missing[:3]}, {len(surplus)} unknown {surplus[:3]}, {len(differing)} of another "
            f"shape {differing[:3]}"
        )
    module.load_state_dict(stored)
    return metadata


def load_training_state(checkpoint: Path) -> TrainingState:
    """Returns what `save_checkpoint` stored for resuming."""
    with safe_open(checkpoint / STATE_FILE, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    return TrainingState(
        step=int(metadata["step"]),
        tensors=tensors,
        recipe=json.loads(metadata["recipe"]),
        data_fingerprint=metadata["data_fingerprint"],
    )


def _read_config(file: Path) -> VisualizerConfig:
    try:
        return from_dict(json.loads(file.read_text("utf-8")), VisualizerConfig)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None


def _write_files(folder: Path, visualizer: Visualizer, state: TrainingState) -> None:
    """Writes config, weights, state and, last, the manifest; all forced to disk."""
    config = json.dumps(to_dict(visualizer.config), indent=1)
    (folder / CONFIG_FILE).write_text(config + "\n", "utf-8")
    weights = {name: tensor.contiguous() for name, tensor in visualizer.state_dict().items()}
    encoder = visualizer.encoder_fingerprint
    known = {ENCODER: encoder} if encoder else {}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"} | known)
    metadata = {
        "step": str(state.step),
        "recipe": json.dumps(state.recipe),
        "data_fingerprint": state.data_fingerprint,
    }
    save_file(state.tensors, folder / STATE_FILE, metadata=metadata)
    names = (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE)
    manifest: Mapping[str, Any] = {name: _hash_file(folder / name, sync=True) for name in names}
    with open(folder / MANIFEST_FILE, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _hash_file(path: Path, *, sync: bool = False) -> dict[str, int | str]:
    """Returns size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _sync_folder(folder: Path) -> None:
    """Forces the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
