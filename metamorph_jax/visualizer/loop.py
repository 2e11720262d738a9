"""The order of things in a training run: resume, update, log, save, stop.

One update is in trainer.py; what a checkpoint looks like, in checkpoint.py; data, in feed.py. Under
`accelerate launch` every process runs this, and the first one writes.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import gather_object

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import record_phase
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.signals import EXIT_STOPPED, StopRequest, exit_on_sigterm
from metamorph_jax.visualizer.checkpoint import (
    newest_intact,
    open_parts,
    remove_leftovers,
    save_checkpoint,
    set_aside_checkpoints,
)
from metamorph_jax.visualizer.feed import Feed, Rows
from metamorph_jax.visualizer.quarantine import Quarantine
from metamorph_jax.visualizer.schema import VisualizerRunConfig
from metamorph_jax.visualizer.sources import Sources, with_latents
from metamorph_jax.visualizer.trainer import Trainer


def train(
    config: VisualizerRunConfig,
    sources: Sources,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "auto",
    max_steps: int | None = None,
) -> int:
    """Trains to the recipe's last step, saving now and then and on SIGTERM or Ctrl-C.

    Args:
        config: the recipe.
        sources: where pictures, visual tokens and latents are.
        out: the run's folder, which gets `checkpoints/`, `metrics.jsonl`, `tb/`,
            `quarantine.jsonl` and `phases.jsonl`.
        resume: `auto` continues the run in `out`, `never` sets its checkpoints aside.
        max_steps: stop after this many steps in all.

    Returns:
        0, or 75 when a signal stopped it (the same command goes on).

    Raises:
        UserError: bad files or recipe, another run's checkpoints, too many bad pictures, or a loss
            that is not finite.
    """
    started = time.monotonic()
    total = config.training.total_steps
    last = total if max_steps is None else min(total, max_steps)
    with exit_on_sigterm():
        run = _prepare(config, sources, out, resume)
    first = run.trainer.step
    with StopRequest() as stop, run.writing(last):
        run.make_steps(last, stop)
    if run.trainer.step > first and run.accelerator.is_main_process:
        record_phase(out, "visualizer", time.monotonic() - started)
    if run.trainer.step < last:
        name = stop.signal_name or "another process was stopped"
        run.accelerator.print(f"{name}: saved at step {run.trainer.step}; the same command goes on")
        return EXIT_STOPPED
    return 0


def _prepare(config: VisualizerRunConfig, sources: Sources, out: Path, resume: str) -> "_Run":
    """Opens the data; continues what is in the folder, or begins."""
    accelerator = _open_accelerator(config)
    share = (accelerator.process_index, accelerator.num_processes)
    sources.check(config.model)
    encoder = sources.open_encoder(config.model)
    data = sources.open_data(config.model, encoder)
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            _prepare_folder(out, resume)
        parts = open_parts(out, Path(config.stable_diffusion), config.model)
    if parts is not None:
        parts.vae.to(accelerator.device)
    data = with_latents(data, config, parts, sources.latents, share)
    accelerator.wait_for_everyone()  # for the latents that other processes keep
    feed = Feed(data, config, share)
    trainer = Trainer(config, data, parts, encoder, accelerator)
    checkpoint = newest_intact(out)
    if checkpoint is None:
        trainer.start()
    else:
        trainer.restore(checkpoint)
        accelerator.print(f"continuing {checkpoint}")
    return _Run(config, out, accelerator, trainer, feed, trainer.step)


def _open_accelerator(config: VisualizerRunConfig) -> Accelerator:
    """Returns this process's place among all."""
    accelerator = Accelerator(mixed_precision=config.training.mixed_precision)
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if announced != accelerator.num_processes:
        raise UserError(
            f"{announced} processes were started (WORLD_SIZE), but accelerate sees "
            f"{accelerator.num_processes}; without GPUs, set ACCELERATE_USE_CPU=true for all"
        )
    return accelerator


def _prepare_folder(out: Path, resume: str) -> None:
    """Removes what killed processes left half-written; sets checkpoints aside if asked to."""
    remove_leftovers(out)
    if resume == "never" and (aside := set_aside_checkpoints(out)) is not None:
        print(f"starting over; earlier checkpoints are now in {aside}")


@dataclasses.dataclass
class _Run:
    """A run as one of its processes sees it."""

    config: VisualizerRunConfig
    out: Path
    accelerator: Accelerator
    trainer: Trainer
    feed: Feed
    saved_step: int
    writer: MetricWriter | None = None  # of the first process only
    progress: Progress | None = None

    def make_steps(self, last: int, stop: StopRequest) -> None:
        """Makes updates until `last` or a stop request; what was reached is saved."""
        trainer = self.trainer
        quarantine = Quarantine(self.out, len(self.feed), self.config.data.max_bad_fraction)
        batches = self.feed.steps(trainer.step, last)
        while trainer.step < last and not self._is_stopped(stop):
            with self._saving_on_error():
                batch = next(batches)
                self._look_at(batch, quarantine)
            self._report(trainer.update(batch))
            if trainer.step % self.config.checkpoint.interval_steps == 0:
                self._save()
        if self.saved_step < trainer.step:
            self._save()

    @contextlib.contextmanager
    def writing(self, last: int) -> Iterator[None]:
        """Opens what the first process writes to, metrics after a resumed step forgotten."""
        if not self.accelerator.is_main_process:
            yield
            return
        step = self.trainer.step
        self.writer = MetricWriter(self.out)
        self.writer.truncate_after(step)
        interval = self.config.log_interval_steps
        self.progress = Progress(last, log_interval=interval, label="visualizer", start=step)
        try:
            yield
        finally:
            self.progress.close()
            self.writer.close()

    def _is_stopped(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; they all leave at the same step."""
        return self.trainer.add_up([bool(stop)]) != [0.0]

    def _look_at(self, batch: Sequence[Rows], quarantine: Quarantine) -> None:
        """Writes down the pictures of a batch that cannot be used, on whatever process."""
        complaints = [complaint for rows in batch for complaint in rows.complaints]
        if self.trainer.add_up([len(complaints)]) != [0.0]:
            quarantine.add(gather_object(complaints), self.accelerator.is_main_process)

    def _report(self, values: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write_scalars(self.trainer.step, values)
            self.progress.update(self.trainer.step, {"loss": values["loss"]})

    @contextlib.contextmanager
    def _saving_on_error(self) -> Iterator[None]:
        """Saves what was trained before an error of the data ends the run."""
        try:
            yield
        except Exception:
            if self.saved_step < self.trainer.step:
                self._save()
            raise

    def _save(self) -> None:
        trainer = self.trainer
        if self.accelerator.is_main_process:
            self.progress.waiting_for("saving")
            save_checkpoint(
                self.out, trainer.visualizer, trainer.state(), self.config.checkpoint.keep
            )
        self.saved_step = trainer.step
