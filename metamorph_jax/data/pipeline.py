"""The data of a VPiT stage: step -> Batch.

Reads and tokenises the sources once, plans each epoch (`packing.py`), and builds batches
(`rows.py`) ahead of the training loop (`loader.py`). The batch of step s holds rows
[s * B, (s + 1) * B) of the epochs laid end to end, so it is a pure function of (seed, s): hosts,
workers and resuming do not change it.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.conversation import Conversation
from metamorph_jax.data.example_store import ExampleStore, read_examples
from metamorph_jax.data.images import GREY, ImageLoader
from metamorph_jax.data.loader import iterate_steps, process_rows
from metamorph_jax.data.packing import (
    WINDOW,
    Plan,
    cut_example,
    epoch_order,
    num_shown,
    pack_rows,
)
from metamorph_jax.data.rows import Row, build_row
from metamorph_jax.data.templates import TEMPLATES, Example, render_example
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Batch

_KEPT_PLANS = 4


class TrainingData:
    """Packed batches of one stage.

    Args:
        data: sources and row shape.
        tokenizer: of the texts.
        template: key of `TEMPLATES`.
        image_size: side of the tower's input, in pixels.
        num_visual_tokens: P, visual tokens of an image.
        seed: of the run.
        stage_name: stages with other names see other orders.
        global_batch_size: B, rows per step over all processes.
        pad_color: RGB of the padding if `data.image_geometry` is `pad`.

    Raises:
        UserError: a source cannot be read, holds a bad record (FILE:LINE), or is never shown.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer,
        template: str,
        *,
        image_size: int,
        num_visual_tokens: int,
        seed: int,
        stage_name: str,
        global_batch_size: int,
        pad_color: tuple[int, int, int] = GREY,
    ):
        self.data, self.tokenizer = data, tokenizer
        self.image_size, self.num_visual_tokens = image_size, num_visual_tokens
        self.template = TEMPLATES[template]
        self.global_batch_size = global_batch_size
        self._key = f"{seed}/{stage_name}"
        check_sources(data)
        self._num_cut = 0
        self._store = ExampleStore(
            read_examples(source.path, self._render) for source in data.sources
        )
        self._weights = [source.weight for source in data.sources]
        check_epoch(data, self._store.sizes)
        self._loaders = image_loaders(data, image_size, pad_color)
        self._plans: dict[int, Plan] = {}
        self._first_rows = [0]  # of each epoch, as far as epochs are planned

    def _render(self, conversation: Conversation) -> Example:
        example = render_example(
            conversation, self.template, self.tokenizer, self.num_visual_tokens
        )
        cut = cut_example(example, self.data.max_seq_len, self.data.max_images)
        self._num_cut += cut is not example
        return cut

    def plan(self, epoch: int) -> Plan:
        """Returns which examples share a row in an epoch."""
        plan = self._plans.get(epoch)
        if plan is None:
            store, data = self._store, self.data
            order = epoch_order(store.sizes, self._weights, f"{self._key}/{epoch}")
            plan = pack_rows(
                order,
                store.lengths,
                store.num_images,
                data.max_seq_len,
                data.max_images,
                window=WINDOW if data.packing else 0,
            )
            # Threads may plan the same epoch twice; they store the same plan.
            self._plans = dict([*self._plans.items(), (epoch, plan)][-_KEPT_PLANS:])
        return plan

    def _row_examples(self, row: int) -> list[int]:
        """Returns the example numbers of a row, counted through all epochs."""
        first_rows = self._first_rows
        while first_rows[-1] <= row:
            first_rows = [*first_rows, first_rows[-1] + len(self.plan(len(first_rows) - 1))]
        self._first_rows = first_rows
        epoch = int(np.searchsorted(first_rows, row, side="right")) - 1
        return self.plan(epoch)[row - first_rows[epoch]].tolist()

    def _build_row(self, row: int) -> Row:
        indices = self._row_examples(row)
        examples = [self._store[index] for index in indices]
        loaders = [self._loaders[self._store.source_of(index)] for index in indices]
        images = [
            loader.load(path, example.where)
            for loader, example in zip(loaders, examples, strict=True)
            for path in example.images
        ]
        return build_row(
            examples,
            images,
            max_seq_len=self.data.max_seq_len,
            max_images=self.data.max_images,
            num_visual_tokens=self.num_visual_tokens,
            image_size=self.image_size,
        )

    def batch(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """Returns this process's rows of a step.

        Raises:
            UserError: an image cannot be read; names it and its record.
        """
        return stack(
            [self._build_row(row) for row in self._rows(step, process_index, process_count)]
        )

    def _rows(self, step: int, process_index: int = 0, process_count: int = 1) -> range:
        return process_rows(step, self.global_batch_size, process_index, process_count)

    def batches(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields the batches of start_step, start_step + 1, ... without end, prepared ahead.

        Close the iterator (or drop it) to end its threads or worker processes.

        Raises:
            UserError: an image cannot be read; raised at the step that needs it.
        """
        build = functools.partial(
            self.batch, process_index=process_index, process_count=process_count
        )
        return iterate_steps(build, start_step, self.data.num_workers, self.data.prefetch_batches)

    def sample_ids(self, step: int) -> list[str]:
        """Returns FILE:LINE of all examples in the global batch of a step, row after row."""
        indices = [index for row in self._rows(step) for index in self._row_examples(row)]
        return [self._store.where(index) for index in indices]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what a step sees, except the pixels of the images."""
        data = self.data
        shape = (data.max_seq_len, data.max_images, data.packing, data.image_geometry)
        parts = (self._key, self._weights, shape, self.image_size, self.global_batch_size)
        text = f"{parts}/{self._store.fingerprint}/{self.plan(0).fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns counts for a dry run and for the log; those of an epoch are of the first one."""
        plan, store = self.plan(0), self._store
        shown = plan.examples
        tokens = int(store.lengths[shown].sum())
        return {
            "examples": len(store),
            "examples_per_epoch": len(shown),
            "rows_per_epoch": len(plan),
            "steps_per_epoch": round(len(plan) / self.global_batch_size, 2),
            "tokens_per_epoch": tokens,
            "fill_fraction": round(tokens / (len(plan) * self.data.max_seq_len), 4),
            "images_per_epoch": int(store.num_images[shown].sum()),
            "images": int(store.num_images.sum()),
            "answer_images": store.num_answer_images,
            "supervised_tokens": store.num_supervised,
            "cut_examples": self._num_cut,
        }

    def example(self, index: int) -> Example:
        """Returns one example, numbered through the sources in file order."""
        return self._store[index]

    def check_images(self) -> int:
        """Reads every image of every source once; returns how many there are.

        Raises:
            UserError: the first image that cannot be read.
        """
        seen = set()
        for index in range(len(self._store)):
            example, loader = self._store[index], self._loaders[self._store.source_of(index)]
            for path in example.images:
                if (loader, path) not in seen:
                    loader.load(path, example.where)
                    seen.add((loader, path))
        return len(seen)


def check_sources(data: DataConfig) -> None:
    """Raises UserError unless there are sources and their weights show something."""
    if not data.sources:
        raise UserError("data.sources is empty; name at least one .json or .jsonl file")
    for source in data.sources:
        if source.weight <= 0:
            raise UserError(
                f"the weight of data source {source.path} is {source.weight}; it must be positive "
                "(leave the source out to skip it)"
            )


def check_epoch(data: DataConfig, sizes: Sequence[int]) -> None:
    """Raises UserError if an epoch shows nothing of a source, because its weight is so small.

    Args:
        data: the sources.
        sizes: examples of each.
    """
    for source, size in zip(data.sources, sizes, strict=True):
        if num_shown(size, source.weight) == 0:
            raise UserError(
                f"the weight of data source {source.path} is {source.weight}, which shows none of "
                f"its {size} examples in an epoch; make it more than {0.5 / size:.3g} (half an "
                "example), or leave the source out"
            )


def image_loaders(
    data: DataConfig, image_size: int, pad_color: tuple[int, int, int]
) -> list[ImageLoader]:
    """Returns the loader of each source; sources with the same folder share one.

    Without `image_root`, images are beside the source's file.
    """

    def root(source: SourceConfig) -> str:
        return source.image_root or os.path.dirname(source.path) or "."

    by_root = {
        folder: ImageLoader(folder, image_size, data.image_geometry, pad_color)
        for folder in map(root, data.sources)
    }
    return [by_root[root(source)] for source in data.sources]


def stack(rows: list[Row]) -> Any:
    """Returns rows as one dict of arrays with a leading batch dimension."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
