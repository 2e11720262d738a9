"""What a run says about itself: metrics of every step, a progress line, and the NaN alarm.

Metrics are read one step late, so that the device never waits for the host. All processes read
them, and stop at the same alarm; the first one writes and prints.
"""

import io
from pathlib import Path
from typing import Any

import jax

from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.metrics.throughput import (
    StepTimer,
    measured_float32_matmul_flops,
    peak_flops_per_device,
    rates_in_words,
)
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.runtime import compiles
from metamorph_jax.runtime.agreement import is_first
from metamorph_jax.training.batches import Work
from metamorph_jax.training.stages import Stage
from metamorph_jax.typing import Array

MAX_SKIPPED_IN_A_ROW = 5
_SHOWN = ("loss", "text_loss", "cosine", "contrastive_loss", "reconstruction_loss")


class Recorder:
    """Writes the metrics of one stage; `timer.waiting()` measures the wait for data."""

    def __init__(self, config: RunConfig, stage: Stage, workdir: Path, first: int, last: int):
        self.timer = StepTimer(peak_flops())
        self._stage, self._writes, self._is_new = stage, is_first(), True
        self._writer = MetricWriter(workdir) if self._writes else None
        self._progress = Progress(
            last,
            stream=None if self._writes else io.StringIO(),
            log_interval=config.log_interval_steps,
            label=stage.config.name,
            start=first,
        )
        self._pending: tuple[int, dict[str, Any]] | None = None

    def waiting_for(self, what: str) -> None:
        """Shows what holds the loop up."""
        self._progress.waiting_for(what)

    def record(self, step: int, metrics: dict[str, Array], work: Work) -> None:
        """Takes the metrics of the update that made `step`; writes those of the one before."""
        self.flush()
        self.timer.step(**work._asdict())
        self._pending = (step, metrics | self.timer.rates() | self._compiled())

    def flush(self) -> None:
        """Writes what is pending.

        Raises:
            UserError: the last updates were all skipped because they were not finite.
        """
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        values = {
            name: value.item() if isinstance(value, jax.Array) else value
            for name, value in pending.items()
        }
        place = {"stage": self._stage.config.name, "stage_step": step}
        if self._writes:
            self._writer.write_scalars(self._stage.first_step + step, place | values)
        shown = {name: values[name] for name in _SHOWN if name in values}
        self._progress.update(step, shown, note=rates_in_words(values))
        if values["skipped_in_a_row"]:
            self._report_skip(step, values)

    def close(self) -> None:
        """Writes what is pending and ends the progress line."""
        self.flush()
        self._progress.close()
        if self._writes:
            self._writer.close()

    def _compiled(self) -> dict[str, float]:
        """Returns, and tells, what was compiled up to the first step; nothing at later ones."""
        if not self._is_new:
            return {}
        self._is_new, compiled = False, compiles.take()
        if self._writes:
            print(f"stage {self._stage.config.name}: {compiled.describe()}", flush=True)
        return {"compile_secs": compiled.secs, "cached_programs": compiled.num_cached}

    def _report_skip(self, step: int, values: dict[str, float]) -> None:
        """Tells of an update that was not made, and stops the run after too many of them."""
        in_a_row = int(values["skipped_in_a_row"])
        what = (
            f"stage {self._stage.config.name}, step {step}: loss {values['loss']}, gradient norm "
            f"{values['grad_norm']}; the update was skipped ({in_a_row} in a row)"
        )
        if in_a_row < MAX_SKIPPED_IN_A_ROW:
            self._progress.close()
            if self._writes:
                print(what, flush=True)
            return
        raise UserError(
            f"{what}; nothing was learned from these steps and the run stops here. The last batch "
            f"held {_by_file(self._stage.data.sample_ids(step - 1))}. Look at these samples, lower "
            "the learning rate, or clip harder; saved checkpoints are untouched"
        )


def _by_file(sample_ids: list[str]) -> str:
    """Returns FILE:LINE ids as "FILE lines 1, 2, 5"."""
    lines: dict[str, list[int]] = {}
    for sample in sample_ids:
        file, _, line = sample.rpartition(":")
        lines.setdefault(file, []).append(int(line))
    return "; ".join(
        f"{file} lines {', '.join(map(str, sorted(numbers)))}" for file, numbers in lines.items()
    )


def peak_flops() -> float | None:
    """Returns the peak FLOP/s of all devices together.

    On a CPU it is that of its measured matrix product; None (no MFU) for an unknown accelerator.
    """
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return measured_float32_matmul_flops()  # faked devices share the same cores
    known = peak_flops_per_device(devices[0].device_kind)
    return None if known is None else known * len(devices)
