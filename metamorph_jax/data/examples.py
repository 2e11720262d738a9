"""The training examples of a stage by number, each read and rendered when it is asked for.

Nothing is kept: a record is read from its source, made into a conversation (`kinds/`), rendered
(`templates`), its images spread over views if the recipe says so (`views.py`), and cut to a row.
`example_table.py` measures all of them once, so that rows can be planned without reading anything
again.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

from metamorph_jax.config.schema_run import DataConfig
from metamorph_jax.data.conversation import Conversation
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.keyed_random import random_order
from metamorph_jax.data.kinds import make_conversation
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.records import Record
from metamorph_jax.data.sources import Source, open_source
from metamorph_jax.data.templates import Example, render_example
from metamorph_jax.data.templates.rendering import AnyTemplate
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.data.video import VideoInfo, probe_video
from metamorph_jax.data.views import ViewLayout, expand_images
from metamorph_jax.typing import Int


class Records:
    """The records of several sources, numbered through; of each at most `max_count`.

    Args:
        data: names the sources.
        key: of the random choice where a source has more than its `max_count`, and of what its
            kind draws.

    Attributes:
        sizes: records of each source that take part.
    """

    def __init__(self, data: DataConfig, key: str):
        self._key = key
        self.configs = data.sources
        self.sources: list[Source] = [open_source(config.path) for config in data.sources]
        self._chosen = [
            _choose(len(source), config.max_count, f"{key}/choice/{number}")
            for number, (source, config) in enumerate(zip(self.sources, data.sources, strict=True))
        ]
        self.sizes = tuple(
            len(source) if chosen is None else len(chosen)
            for source, chosen in zip(self.sources, self._chosen, strict=True)
        )
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def source_of(self, index: int) -> int:
        """Returns the number of the source that a record comes from."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def where(self, index: int) -> str:
        """Returns FILE:LINE of a record."""
        source, line = self._place(index)
        return self.sources[source].where(line)

    def __getitem__(self, index: int) -> Record:
        source, line = self._place(index)
        return self.sources[source][line]

    def content_hash(self, index: int) -> str:
        """Returns the SHA-256 of a record as it stands in its file; empty if it is not known."""
        source, line = self._place(index)
        return self.sources[source].content_hash(line)

    def conversation(self, index: int, loader: ImageLoader, max_images: int) -> Conversation:
        """Returns what the source's kind makes of a record.

        Args:
            index: of the record.
            loader: of the source's folder; videos are looked at to know their frames.
            max_images: a video is thinned to this many frames.

        Raises:
            BadSample: nothing can be made of the record.
        """
        source, line = self._place(index)
        record = self.sources[source][line]

        def video_info(video: str) -> VideoInfo:
            return probe_video(loader.resolve_video(video, record.where), record.where)

        key = f"{self._key}/sample/{source}/{line}"
        return make_conversation(record, self.configs[source], key, video_info, max_images)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns (source, index within it)."""
        source = self.source_of(index)
        within = index - int(self._ends[source]) + self.sizes[source]
        chosen = self._chosen[source]
        return source, within if chosen is None else int(chosen[within])

    @property
    def fingerprint(self) -> str:
        """A hash of the records and of what is made of them; the weights are not part of it."""
        made = [
            (config.kind, config.max_count, config.response_format, config.thinking_image)
            for config in self.configs
        ]
        parts = (self._key, [source.fingerprint for source in self.sources], made)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _choose(size: int, max_count: int | None, key: str) -> Int[np.ndarray, "count"] | None:
    """Returns which records take part, in file order; None: all."""
    if max_count is None or size <= max_count:
        return None
    return np.sort(random_order(key, size)[:max_count])


class Rendered(NamedTuple):
    """An example, and whether it had to be cut to fit a row."""

    example: Example
    is_cut: bool


class Examples:
    """Records as training examples.

    Args:
        records: of the stage.
        loaders: one per source.
        data: shape of the rows.
        tokenizer: of the texts.
        template: how conversations are written.
        num_visual_tokens: P.
        layout: of images that are shown as several views; None: none is.
    """

    def __init__(
        self,
        records: Records,
        loaders: list[ImageLoader],
        data: DataConfig,
        tokenizer: Tokenizer,
        template: AnyTemplate,
        num_visual_tokens: int,
        layout: ViewLayout | None = None,
    ):
        self.records, self.loaders = records, loaders
        self._data, self._tokenizer, self._template = data, tokenizer, template
        self._num_visual_tokens, self._layout = num_visual_tokens, layout

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Rendered:
        """Returns an example that fits a row.

        Raises:
            BadSample: it cannot be made, or has nothing to learn.
        """
        data, loader = self._data, self.loaders[self.records.source_of(index)]
        conversation = self.records.conversation(index, loader, data.max_images)
        example = render_example(
            conversation, self._template, self._tokenizer, self._num_visual_tokens
        )
        size_of = functools.partial(loader.image_size, where=example.where)
        example = expand_images(example, self._layout, size_of)
        cut = cut_example(example, data.max_seq_len, data.max_images)
        if trouble := nothing_to_learn(cut, cut is not example):
            raise BadSample("nothing_to_learn", f"{cut.where}: {trouble}")
        return Rendered(cut, cut is not example)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that reaches the model, except the pixels."""
        data = self._data
        shape = (data.max_seq_len, data.max_images, self._num_visual_tokens)
        shape += () if self._layout is None else (self._layout,)
        parts = (self.records.fingerprint, self._tokenizer.fingerprint, repr(self._template), shape)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def nothing_to_learn(example: Example, is_cut: bool) -> str | None:
    """Returns why an example teaches nothing, and what to do; None: it does teach.

    Args:
        example: that fits a row.
        is_cut: whether it was longer.
    """
    if example.supervised.any() or any(example.image_is_answer):
        return None
    if is_cut:
        return (
            "what fits into a row ends before the first answer; shorten the question or raise "
            "data.max_seq_len"
        )
    return "there is no answer to learn; add a turn from 'gpt'"
