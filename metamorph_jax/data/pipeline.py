"""The data of a VPiT stage: step -> Batch.

Sources are opened and measured (`examples.py`, `example_table.py`), every epoch's rows are planned
ahead (`plan.py`), and batches are built from the plan (`rows.py`) ahead of the training loop
(`loader.py`). The batch of step s is a pure function of (seed, s): hosts, workers and resuming do
not change it.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.death_journal import DeathJournal
from metamorph_jax.data.example_table import ExampleTable, OnProgress, load_or_measure
from metamorph_jax.data.examples import Examples, Records
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.feature_loader import FeatureLoader
from metamorph_jax.data.feature_store import FeatureStore
from metamorph_jax.data.geometry import Processor
from metamorph_jax.data.images import GREY, ImageLoader
from metamorph_jax.data.loader import iterate_steps, step_rows
from metamorph_jax.data.packing import num_shown
from metamorph_jax.data.plan import RowShape, Section, StagePlan, continue_sections
from metamorph_jax.data.quarantine import (
    Built,
    Finding,
    Quarantine,
    find_bad,
    quarantine_file,
)
from metamorph_jax.data.rows import Filled, Slots, blank_example, build_rows, pixel_slots
from metamorph_jax.data.sources import find_files
from metamorph_jax.data.templates import Example
from metamorph_jax.data.templates.rendering import AnyTemplate
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.data.views import view_layout
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Batch


class TrainingData:
    """Packed batches of one stage.

    Args:
        data: sources and row shape.
        tokenizer: of the texts.
        template: how conversations are written.
        image_size: side of the tower's input, in pixels.
        num_visual_tokens: P, visual tokens of an image.
        seed: of the run.
        stage_name: stages with other names see other orders.
        global_batch_size: B, rows per step over all processes.
        pad_color: RGB of the padding if `data.image_geometry` is `pad`.
        processor: family of the tower.
        folder: where the table, the plan and quarantine.jsonl are kept; None: nowhere.
        process_index: of this process, for what each writes into a file of its own.
        start_step: at which the stage goes on, if `sections` are given.
        sections: of the mixture, as far as they are known from before.
        on_progress: told how many examples of how many are measured.

    Raises:
        UserError: a source cannot be read, holds too many bad records, or is never shown.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer,
        template: AnyTemplate,
        *,
        image_size: int,
        num_visual_tokens: int,
        seed: int,
        stage_name: str,
        global_batch_size: int,
        pad_color: tuple[int, int, int] = GREY,
        processor: Processor = "siglip",
        folder: Path | None = None,
        process_index: int = 0,
        start_step: int = 0,
        sections: Sequence[Section] = (),
        on_progress: OnProgress | None = None,
    ):
        self.data, self.tokenizer = data, tokenizer
        self.image_size, self.num_visual_tokens = image_size, num_visual_tokens
        self.global_batch_size = global_batch_size
        self._key = f"{seed}/{stage_name}"
        check_sources(data)
        records = Records(data, self._key)
        self._loaders = image_loaders(data, image_size, pad_color, processor)
        self._read, self._slots = _what_rows_hold(data, self._loaders, image_size)
        self._layout = view_layout(data, image_size, num_visual_tokens)
        self._examples = Examples(
            records, self._loaders, data, tokenizer, template, num_visual_tokens, self._layout
        )
        self.table = load_or_measure(
            self._examples, folder, data.num_workers, on_progress, look_again=start_step == 0
        )
        file = quarantine_file(folder, process_index) if folder else None
        paths = [source.path for source in data.sources]
        self.quarantine = Quarantine(
            paths, records.sizes, data.max_bad_fraction, file, self.fingerprint
        )
        self._journal = DeathJournal(self.quarantine.killers)
        still_bad = functools.partial(find_bad, records, self._load)
        self.quarantine.begin(self.table.findings, still_bad)
        weights = [source.weight for source in data.sources]
        self.plan = StagePlan(
            self.table,
            records.sizes,
            continue_sections(sections, start_step, weights),
            RowShape(
                max_seq_len=data.max_seq_len, max_images=data.max_images, packing=data.packing
            ),
            self._key,
            global_batch_size,
            self.fingerprint,
            folder,
        )
        check_epoch(data, self.plan.usable_sizes)
        self._warn_of_idle_samples()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes build rows; what is bad is written down by the main process.
        lean = ExampleTable(self.table.rows, ())
        return self.__dict__ | {"quarantine": None, "table": lean}

    def _warn_of_idle_samples(self) -> None:
        """Tells if many samples teach nothing, which does not count against the budget."""
        found = self.quarantine.findings
        idle = sum(finding.reason == "nothing_to_learn" for finding in found)
        if idle > self.data.max_bad_fraction * len(self.table):
            logging.getLogger(__name__).warning(
                "%d of %d samples have nothing to learn within data.max_seq_len=%d and are left "
                "out; quarantine.jsonl lists them",
                idle,
                len(self.table),
                self.data.max_seq_len,
            )

    def _fill_row(self, row: int, findings: list[Finding]) -> Filled:
        """Returns the examples of a row and their images; appends what is bad to `findings`."""
        examples, images = [], []
        for index in self.plan.row(row):
            records = self._examples.records
            where = records.where(index)
            try:
                with self._journal.entering(where):
                    example, pixels = self._load(index, where)
            except BadSample as error:
                example, pixels = blank_example(int(self.table.rows["length"][index])), []
                findings.append(Finding.of(records, index, error))
            examples.append(example)
            images += pixels
        return examples, images

    def _load(self, index: int, where: str) -> tuple[Example, list]:
        """Returns an example as it was measured, and its pixels."""
        self._journal.check(where)
        example = self.example(index)
        measured = self.table.rows[index]
        if (len(example), len(example.images)) != (measured["length"], measured["num_images"]):
            raise BadSample(
                "malformed_record",
                f"{example.where}: the record has changed since the data was measured; "
                "put it back, or begin a new run with the file as it is (another --workdir)",
            )
        loader = self._read[self._examples.records.source_of(index)]
        return example, loader.load_all(example.images, example.where)

    def build(self, step: int, places: Sequence[int] | None = None) -> Built:
        """Returns rows of a step, all or those at some places in it, and what is bad in them."""
        findings: list[Finding] = []
        rows = self._rows(step, places)
        batch = build_rows(
            [self._fill_row(row, findings) for row in rows],
            self._slots,
            max_seq_len=self.data.max_seq_len,
            max_images=self.data.max_images,
            num_visual_tokens=self.num_visual_tokens,
            has_mixtures=self._layout is not None and self._layout.has_mixtures,
        )
        return Built(batch, findings)

    def batch(self, step: int, places: Sequence[int] | None = None) -> Batch:
        """Returns rows of a step, see `build`; where a sample is bad, they are empty."""
        return self.build(step, places).batch

    def _rows(self, step: int, places: Sequence[int] | None = None) -> Sequence[int]:
        return step_rows(step, self.global_batch_size, places)

    def batches(self, start_step: int = 0, places: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yields the batches of start_step, start_step + 1, ... without end, prepared ahead.

        Bad samples are put into quarantine when the step that has them is reached. Close the
        iterator (or drop it) to end its threads or worker processes.

        Raises:
            UserError: a source has more bad samples than `data.max_bad_fraction` allows.
        """
        build = functools.partial(self.build, places=places)
        data = self.data
        steps = iterate_steps(
            build, start_step, data.num_workers, data.prefetch_batches, self._journal
        )
        return self.quarantine.sift(steps)

    def sample_ids(self, step: int) -> list[str]:
        """Returns FILE:LINE of all examples in the global batch of a step, row after row."""
        indices = [index for row in self._rows(step) for index in self.plan.row(row)]
        return [self._examples.records.where(index) for index in indices]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what a step sees, except the mixture and the pixels."""
        data = self.data
        shape = (data.max_seq_len, data.max_images, data.packing, data.image_geometry)
        pixels = (self.image_size, self._loaders[0].processor)
        parts = (self._key, shape, pixels, self.global_batch_size)
        return hashlib.sha256(f"{parts}/{self._examples.fingerprint}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns counts for a dry run and for the log; those of an epoch are of the first one."""
        plan, table = self.plan.epoch(0, len(self.plan.sections) - 1), self.table
        shown = table.rows[plan.examples]
        tokens = int(shown["length"].sum(dtype=np.int64))
        return {
            "examples": len(table),
            "examples_per_epoch": len(shown),
            "rows_per_epoch": len(plan),
            "steps_per_epoch": round(len(plan) / self.global_batch_size, 2),
            "tokens_per_epoch": tokens,
            "fill_fraction": round(tokens / (len(plan) * self.data.max_seq_len), 4),
            "images_per_epoch": int(shown["num_images"].sum(dtype=np.int64)),
            "images": table.total("num_images"),
            "answer_images": table.total("num_answer_images"),
            "supervised_tokens": table.total("num_supervised"),
            "cut_examples": table.total("is_cut"),
            "bad_examples": len(table) - len(table.usable),
        }

    def example(self, index: int) -> Example:
        """Returns one example, numbered through the sources in file order.

        Raises:
            BadSample: it cannot be made.
        """
        return self._examples[index].example


def _what_rows_hold(
    data: DataConfig, loaders: list[ImageLoader], image_size: int
) -> tuple[list[ImageLoader] | list[FeatureLoader], Slots]:
    """Returns what reads the images of each source, and what an image of a row is."""
    if not data.features:
        return loaders, pixel_slots(image_size)
    store = FeatureStore(data.features)
    readers = [FeatureLoader(store, loader) for loader in loaders]
    return readers, Slots("features", store.shape, store.dtype)


def check_sources(data: DataConfig) -> None:
    """Raises UserError unless there are sources and their weights show something."""
    if not data.sources:
        raise UserError("data.sources is empty; name at least one data file")
    for source in data.sources:
        if source.weight <= 0:
            raise UserError(
                f"the weight of data source {source.path} is {source.weight}; it must be positive "
                "(leave the source out to skip it)"
            )


def check_epoch(data: DataConfig, sizes: Sequence[int]) -> None:
    """Raises UserError if an epoch shows nothing of a source.

    Args:
        data: the sources.
        sizes: usable examples of each.
    """
    for source, size in zip(data.sources, sizes, strict=True):
        if size == 0:
            raise UserError(
                f"data source {source.path} has no usable example; see quarantine.jsonl"
            )
        if num_shown(size, source.weight) == 0:
            raise UserError(
                f"the weight of data source {source.path} is {source.weight}, which shows none of "
                f"its {size} examples in an epoch; make it more than {0.5 / size:.3g} (half an "
                "example), or leave the source out"
            )


def image_loaders(
    data: DataConfig,
    image_size: int,
    pad_color: tuple[int, int, int],
    processor: Processor = "siglip",
) -> list[ImageLoader]:
    """Returns the loader of each source; sources with the same folder share one.

    Without `image_root`, images are beside the source's file, or beside the first of its files.
    """

    def root(source: SourceConfig) -> str:
        first = min(find_files(source.path), default=source.path)
        return source.image_root or os.path.dirname(first) or "."

    by_root = {
        folder: ImageLoader(folder, image_size, data.image_geometry, pad_color, processor)
        for folder in map(root, data.sources)
    }
    return [by_root[root(source)] for source in data.sources]
