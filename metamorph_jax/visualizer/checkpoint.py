"""Visualizers on disk: folders of safetensors that appear whole or not at all.

    RUN/checkpoints/00000800/config.json                   the model (VisualizerConfig)
                             model.safetensors             weights of projector and U-Net
                             ema.safetensors               their moving averages, if there are any
                             training_state.safetensors    Adam moments, step, recipe
                             manifest.json                 size and SHA-256 of the others
    RUN/checkpoints/stable_diffusion/                      frozen parts (parts.py), once for all

A checkpoint that took damage shows in its manifest; then the one before it is used.
`load_visualizer` takes a run, one of its checkpoints, or a folder that holds only config.json,
model.safetensors and, for a VAE, stable_diffusion/.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metamorph_jax.config.loading import from_dict, to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.dataset import ENCODER
from metamorph_jax.visualizer.manifest import MANIFEST_FILE, find_damage, whole_folder
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.parts import PICKLES, Parts, keep_parts, load_parts
from metamorph_jax.visualizer.schema import VisualizerConfig

CHECKPOINTS, PARTS = "checkpoints", "stable_diffusion"
CONFIG_FILE, WEIGHTS_FILE, EMA_FILE = "config.json", "model.safetensors", "ema.safetensors"
STATE_FILE = "training_state.safetensors"
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What resuming needs besides the weights.

    Attributes:
        step: updates done.
        tensors: the optimiser's moments by parameter name.
        recipe: the run's recipe as nested dicts.
        data_fingerprint: of the pictures it was trained on.
        ema: moving averages of the trained weights by parameter name; empty where none are kept.
    """

    step: int
    tensors: dict[str, Tensor]
    recipe: dict[str, Any]
    data_fingerprint: str
    ema: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def save_checkpoint(run: Path, visualizer: Visualizer, state: TrainingState, keep: int) -> Path:
    """Writes the checkpoint of `state.step` and removes all but the newest `keep`.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are as before.
    """
    folder = run / CHECKPOINTS / f"{state.step:08d}"
    try:
        with whole_folder(folder) as temporary:
            _write_files(temporary, visualizer, state)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise UserError(
            f"{folder}: the checkpoint of step {state.step} could not be written ({error}); "
            "earlier ones are intact. Free some space and run the same command again"
        ) from error
    for step in complete_steps(run)[keep:]:
        shutil.rmtree(run / CHECKPOINTS / f"{step:08d}")
    return folder


def open_parts(run: Path, source: Path | None, config: VisualizerConfig) -> Parts | None:
    """Returns the parts of Stable Diffusion that a run keeps, None for pixels.

    Args:
        run: its folder; the first call copies the parts there.
        source: the recipe's Stable Diffusion folder, needed by the first call only.
        config: the model.

    Raises:
        UserError: a part is missing, damaged, a pickle or does not fit, or the disk is full.
    """
    if config.latents.kind == "pixels":
        return None
    kept = run / CHECKPOINTS / PARTS
    if not kept.is_dir():
        found = load_parts(source, config)
        try:
            keep_parts(found, kept)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{kept}: could not be written ({error})") from error
    return load_parts(kept, config)


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


def load_visualizer(folder: Path) -> Visualizer:
    """Returns the model of a run, of one of its checkpoints or of a plain folder, for painting.

    Its weights are the moving averages where there are some. It is in evaluation mode.

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
    config = _read_config(where / CONFIG_FILE)
    visualizer = Visualizer(config, _find_parts(where, config))
    metadata = load_weights(visualizer, where / WEIGHTS_FILE)
    visualizer.encoder_fingerprint = metadata.get(ENCODER)
    if (where / EMA_FILE).is_file():
        averages, _ = read_tensors(where / EMA_FILE)
        visualizer.load_state_dict(averages, strict=False)  # the manifest vouches for the names
    return visualizer.eval()


def load_weights(module: nn.Module, file: Path) -> dict[str, str]:
    """Copies the weights in `file` into `module`; returns the file's metadata.

    Raises:
        UserError: no safetensors file, or its tensors are not exactly those of `module`.
    """
    stored, metadata = read_tensors(file)
    check_tensors(stored, module, file)
    module.load_state_dict(stored)
    return metadata


def check_tensors(stored: dict[str, Tensor], module: nn.Module, file: Path) -> None:
    """Compares names and shapes with those of `module`.

    Raises:
        UserError: they differ.
    """
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


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file.

    Raises:
        UserError: there is none, or it is another format (a pickle) or cut off.
    """
    if not file.is_file():
        pickles = [path.name for path in sorted(file.parent.glob("*")) if path.suffix in PICKLES]
        told = f", only pickles ({', '.join(pickles)}), which are not read" if pickles else ""
        raise UserError(f"{file}: no such file{told}")
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {name: opened.get_tensor(name) for name in opened.keys()}
            return stored, opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from None


def load_training_state(checkpoint: Path) -> TrainingState:
    """Returns what `save_checkpoint` stored for resuming."""
    tensors, metadata = read_tensors(checkpoint / STATE_FILE)
    averages = checkpoint / EMA_FILE
    return TrainingState(
        step=int(metadata["step"]),
        tensors=tensors,
        recipe=json.loads(metadata["recipe"]),
        data_fingerprint=metadata["data_fingerprint"],
        ema=read_tensors(averages)[0] if averages.is_file() else {},
    )


def _find_parts(checkpoint: Path, config: VisualizerConfig) -> Parts | None:
    """Returns Stable Diffusion's parts in a folder or beside it; None where none are needed."""
    if config.latents.kind == "pixels":
        return None
    within = checkpoint / PARTS
    return load_parts(within if within.is_dir() else checkpoint.parent / PARTS, config)


def _read_config(file: Path) -> VisualizerConfig:
    try:
        return from_dict(json.loads(file.read_text("utf-8")), VisualizerConfig)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None


def _write_files(folder: Path, visualizer: Visualizer, state: TrainingState) -> None:
    """Writes config, weights, averages and state."""
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
    if state.ema:
        save_file(state.ema, folder / EMA_FILE, metadata={"format": "pt"})
