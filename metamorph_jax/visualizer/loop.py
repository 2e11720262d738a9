"""The order of things in a training run: resume, update, log, save, stop.

One update is in trainer.py; what a checkpoint looks like, in checkpoint.py.
"""

import time
from pathlib import Path
from typing import Literal

from metamorph_jax.metrics.phases import record_phase
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.signals import EXIT_STOPPED, StopRequest
from metamorph_jax.visualizer.checkpoint import (
    newest_intact,
    open_parts,
    remove_leftovers,
    save_checkpoint,
    set_aside_checkpoints,
)
from metamorph_jax.visualizer.dataset import load_picture_data
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.schema import VisualizerRunConfig
from metamorph_jax.visualizer.trainer import Trainer


def train(
    config: VisualizerRunConfig,
    features: Path,
    image_root: Path,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "auto",
    max_steps: int | None = None,
) -> int:
    """Trains to the recipe's last step, saving now and then and on SIGTERM or Ctrl-C.

    Args:
        config: the recipe.
        features: safetensors file (dataset.py says what is in it).
        image_root: folder of the pictures that `features` lists.
        out: the run's folder, which gets `checkpoints/`, `metrics.jsonl` and `phases.jsonl`.
        resume: `auto` continues the run in `out`, `never` sets its checkpoints aside.
        max_steps: stop after this many steps in all.

    Returns:
        0, or 75 when a signal stopped it (the same command goes on).

    Raises:
        UserError: bad files or recipe, another run's checkpoints, or a loss that is not finite.
    """
    started = time.monotonic()
    total = config.training.total_steps
    last = total if max_steps is None else min(total, max_steps)
    _prepare_folder(out, resume)
    parts = open_parts(out, Path(config.stable_diffusion), config.model)
    latents = create_latents(config.model.latents, parts and parts.vae)
    data = load_picture_data(features, image_root, config.model, latents)
    trainer = Trainer(config, data, parts)
    _resume(trainer, out)
    first = trainer.step
    writer = MetricWriter(out)
    writer.truncate_after(first)
    progress = Progress(
        last, log_interval=config.log_interval_steps, label="visualizer", start=first
    )
    try:
        with StopRequest() as stop:
            _run(trainer, config, out, last, stop, writer, progress)
    finally:
        progress.close()
        writer.close()
    if trainer.step > first:
        record_phase(out, "visualizer", time.monotonic() - started)
    if trainer.step < last:
        print(f"{stop.signal_name}: saved at step {trainer.step}; the same command goes on")
        return EXIT_STOPPED
    return 0


def _run(
    trainer: Trainer,
    config: VisualizerRunConfig,
    out: Path,
    last: int,
    stop: StopRequest,
    writer: MetricWriter,
    progress: Progress,
) -> None:
    """Makes updates until `last` or a stop request; what was reached is saved."""
    saved = trainer.step
    while trainer.step < last and not stop:
        values = trainer.update()
        writer.write_scalars(trainer.step, values)
        progress.update(trainer.step, {"loss": values["loss"]})
        if trainer.step % config.checkpoint.interval_steps == 0:
            saved = _save(trainer, config, out, progress)
    if saved < trainer.step:
        _save(trainer, config, out, progress)


def _save(trainer: Trainer, config: VisualizerRunConfig, out: Path, progress: Progress) -> int:
    """Saves; returns the step."""
    progress.waiting_for("saving")
    save_checkpoint(out, trainer.visualizer, trainer.state(), config.checkpoint.keep)
    return trainer.step


def _prepare_folder(out: Path, resume: str) -> None:
    """Removes what killed processes left half-written; sets checkpoints aside if asked to."""
    remove_leftovers(out)
    if resume == "never" and (aside := set_aside_checkpoints(out)) is not None:
        print(f"starting over; earlier checkpoints are now in {aside}")


def _resume(trainer: Trainer, out: Path) -> None:
    """Continues the run in `out`, or begins one."""
    checkpoint = newest_intact(out)
    if checkpoint is None:
        trainer.start()
    else:
        trainer.restore(checkpoint)
        print(f"continuing {checkpoint}")
