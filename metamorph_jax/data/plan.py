"""Which row holds which examples, for a whole stage: a function of (seed, step), kept as files.

Rows are numbered from the beginning of the stage; the batch of step s holds rows s * B to
(s + 1) * B - 1. They come from epochs laid end to end. When the weights of the mixture change, a
new *section* begins at that step, with new epochs; what was before stays what it was. `plan.json`
tells where sections begin; each epoch's rows lie beside it as two arrays of numbers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from metamorph_jax.data.example_table import ExampleTable, OnProgress
from metamorph_jax.data.kept_files import open_array, save_array, save_text
from metamorph_jax.data.packing import WINDOW, Plan, epoch_order, num_shown, pack_rows

_KEPT_EPOCHS = 4


@dataclasses.dataclass(frozen=True)
class Section:
    """A stretch of a stage with one mixture.

    Attributes:
        first_step: at which it begins, counted from the beginning of the stage.
        weights: one per source.
    """

    first_step: int
    weights: tuple[float, ...]


def continue_sections(
    sections: Sequence[Section], step: int, weights: Sequence[float]
) -> tuple[Section, ...]:
    """Returns the sections of a stage that goes on at `step` with `weights`.

    Args:
        sections: those it had so far; what they planned from `step` on never happened.
        step: first step to be done.
        weights: one per source.
    """
    kept = tuple(section for section in sections if section.first_step < step)
    if kept and kept[-1].weights == tuple(weights):
        return kept
    return (*kept, Section(step, tuple(weights)))


def _after(done: int, total: int, on_progress: OnProgress) -> Callable[[int], None]:
    """Returns what tells `on_progress` of examples that come after `done` others."""
    return lambda placed: on_progress(done + placed, total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """What a row holds at most, and whether it holds more than one example."""

    max_seq_len: int
    max_images: int
    packing: bool


class StagePlan:
    """The rows of a stage.

    Args:
        table: of the examples.
        sizes: examples of each source; they are numbered through.
        sections: of the mixture.
        shape: of a row.
        key: names the draws; other keys give other orders.
        global_batch_size: B.
        fingerprint: of all that rows depend on, except the mixture.
        folder: where the plan is kept; None: it is computed when it is needed.
    """

    def __init__(
        self,
        table: ExampleTable,
        sizes: Sequence[int],
        sections: Sequence[Section],
        shape: RowShape,
        key: str,
        global_batch_size: int,
        fingerprint: str,
        folder: Path | None = None,
    ):
        self.sections, self._fingerprint = tuple(sections), fingerprint
        self._measured = hashlib.sha256(table.rows.tobytes()).hexdigest()
        self._shape, self._key, self._folder = shape, key, folder
        self._batch = global_batch_size
        self._lengths, self._num_images = table.rows["length"], table.rows["num_images"]
        self._usable = table.usable
        ends = np.searchsorted(self._usable, np.cumsum(sizes))
        self.usable_sizes = tuple(np.diff(ends, prepend=0).tolist())
        self._epochs: dict[tuple[int, int], Plan] = {}
        self._first_rows = {section: [0] for section in range(len(self.sections))}

    def epoch(
        self, epoch: int, section: int = 0, on_progress: Callable[[int], None] = lambda done: None
    ) -> Plan:
        """Returns which examples share a row in an epoch of a section.

        Args:
            epoch: of the section.
            section: of the stage.
            on_progress: told now and then how many examples have their row.
        """
        plan = self._epochs.get((section, epoch))
        if plan is None:
            plan = self._load(section, epoch) or self._pack(section, epoch, on_progress)
            # Threads may plan the same epoch twice; they keep the same plan.
            kept = [*self._epochs.items(), ((section, epoch), plan)][-_KEPT_EPOCHS:]
            self._epochs = dict(kept)
        return plan

    def row(self, row: int) -> list[int]:
        """Returns the examples of a row."""
        step = row // self._batch
        starts = [section.first_step for section in self.sections]
        section = int(np.searchsorted(starts, step, side="right")) - 1
        row -= starts[section] * self._batch
        first_rows = self._first_rows[section]
        while first_rows[-1] <= row:
            epoch = self.epoch(len(first_rows) - 1, section)
            first_rows = [*first_rows, first_rows[-1] + len(epoch)]
        self._first_rows[section] = first_rows
        epoch = int(np.searchsorted(first_rows, row, side="right")) - 1
        return self.epoch(epoch, section)[row - first_rows[epoch]].tolist()

    def prepare(self, num_steps: int, on_progress: OnProgress = lambda done, total: None) -> None:
        """Computes all epochs that a stage of `num_steps` needs; writes them and `plan.json`.

        Args:
            num_steps: of the stage.
            on_progress: told how many examples of about how many have their row; it may raise,
                and the epochs that are finished stay.
        """
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        ends = [*(section.first_step for section in self.sections[1:]), num_steps]
        epochs, done = [], 0
        for number, (section, end) in enumerate(zip(self.sections, ends, strict=True)):
            needed, rows, epoch = (end - section.first_step) * self._batch, 0, 0
            size, rows_per_epoch = self._epoch_size(section)
            while rows < needed:
                total = done + -(-(needed - rows) // rows_per_epoch) * size
                plan = self.epoch(epoch, number, _after(done, total, on_progress))
                done, rows_per_epoch = done + size, len(plan)
                on_progress(done, total)
                epochs.append(
                    {"section": number, "epoch": epoch, "rows": len(plan)}
                    | {"fingerprint": plan.fingerprint, "files": self._names(number, epoch)}
                )
                rows, epoch = rows + len(plan), epoch + 1
        sections = [dataclasses.asdict(section) for section in self.sections]
        fields = {"key": self._key, "fingerprint": self._fingerprint}
        fields |= {"global_batch_size": self._batch, "sections": sections, "epochs": epochs}
        for file in self._folder.glob("rows-*.npy"):
            if not any(file.name in epoch["files"] for epoch in epochs):
                file.unlink()
        text, file = json.dumps(fields, indent=1) + "\n", self._folder / "plan.json"
        if not file.exists() or file.read_text("utf-8") != text:  # other processes find it done
            save_text(file, text)

    def _epoch_size(self, section: Section) -> tuple[int, int]:
        """Returns the examples of an epoch and about how many rows they fill, at least one."""
        size = sum(map(num_shown, self.usable_sizes, section.weights))
        if not self._shape.packing:
            return size, size
        mean_length = float(self._lengths[self._usable].mean())
        return size, -(-int(size * mean_length) // self._shape.max_seq_len) or 1

    def _pack(self, section: int, epoch: int, on_progress: Callable[[int], None]) -> Plan:
        begin, shape = self.sections[section], self._shape
        since = f"/from_step_{begin.first_step}" if begin.first_step else ""
        order = epoch_order(self.usable_sizes, begin.weights, f"{self._key}{since}/{epoch}")
        plan = pack_rows(
            self._usable[order],
            self._lengths,
            self._num_images,
            shape.max_seq_len,
            shape.max_images,
            window=WINDOW if shape.packing else 0,
            on_progress=on_progress,
        )
        if self._folder is not None and self._folder.is_dir():
            for name, array in zip(
                self._names(section, epoch), (plan.examples, plan.starts), strict=True
            ):
                save_array(self._folder / name, array)
        return plan

    def _load(self, section: int, epoch: int) -> Plan | None:
        """Returns an epoch that was planned before."""
        if self._folder is None:
            return None
        try:
            arrays = [open_array(self._folder / name) for name in self._names(section, epoch)]
        except (OSError, ValueError):
            return None
        return Plan(*arrays)

    def _names(self, section: int, epoch: int) -> list[str]:
        """Returns the file names of an epoch: others for everything that plans other rows."""
        parts = (self._fingerprint, self._measured, self.sections[section])
        tag = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
        return [f"rows-{tag}-{epoch}.{part}.npy" for part in ("examples", "starts")]
