"""The data of a `contrastive` stage: step -> CaptionBatch.

Records are those of LLaVA's pretraining: one image, asked for by the user and described by the
assistant. The batch of step s is a pure function of (seed, s), random shifts included.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from metamorph_jax.config.schema_run import DataConfig
from metamorph_jax.data.conversation import Image, Text, read_conversation
from metamorph_jax.data.images import GREY
from metamorph_jax.data.keyed_random import random_bits
from metamorph_jax.data.loader import iterate_steps, process_rows
from metamorph_jax.data.packing import epoch_order
from metamorph_jax.data.pipeline import check_epoch, check_sources, image_loaders, stack
from metamorph_jax.data.records import Record
from metamorph_jax.data.rows import Row
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.typing import CaptionBatch, Integer


class CaptionData:
    """Images with captions, for contrastive training.

    Args:
        data: sources; a caption is cut at `max_seq_len` tokens.
        tokenizer: of the captions.
        image_size: side of the tower's input, in pixels.
        seed: of the run.
        stage_name: stages with other names see other orders.
        global_batch_size: B, images per step over all processes.
        shift_pixels: each image moves by up to this many pixels in each direction; its border
            pixels fill the gap.
        pad_color: RGB of the padding if `data.image_geometry` is `pad`.

    Raises:
        UserError: a source cannot be read or is never shown, or a record is no pair of image and
            caption (FILE:LINE).
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        seed: int,
        stage_name: str,
        global_batch_size: int,
        shift_pixels: int = 0,
        pad_color: tuple[int, int, int] = GREY,
    ):
        self.data, self.global_batch_size = data, global_batch_size
        self.shift_pixels = shift_pixels
        check_sources(data)
        self._key = f"{seed}/{stage_name}"
        self._loaders = image_loaders(data, image_size, pad_color)
        self._images: list[tuple[int, str, str]] = []  # source, path, FILE:LINE
        captions: list[str] = []
        sizes = []
        for source, config in enumerate(data.sources):
            for record in open_source(config.path):
                path, caption = _image_and_caption(record)
                self._images.append((source, path, record.where))
                captions.append(caption)
            sizes.append(len(captions) - sum(sizes))
        check_epoch(data, sizes)
        self._sizes, self._weights = sizes, [source.weight for source in data.sources]
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self._caption_ids = [numbers[caption] for caption in captions]
        self._captions = [tokenizer.encode_text(caption)[: data.max_seq_len] for caption in numbers]
        self._orders: dict[int, Integer[np.ndarray, "examples"]] = {}

    def _order(self, epoch: int) -> Integer[np.ndarray, "examples"]:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(self._sizes, self._weights, f"{self._key}/{epoch}")
            self._orders = dict([*self._orders.items(), (epoch, order)][-2:])
        return order

    def _example(self, row: int) -> int:
        # Every epoch has the same number of examples: fractions of weights are rounded alike.
        epoch, position = divmod(row, len(self._order(0)))
        return int(self._order(epoch)[position])

    def _build_row(self, row: int) -> Row:
        index = self._example(row)
        source, path, where = self._images[index]
        pixels = self._loaders[source].load(path, where)
        ids = self._captions[self._caption_ids[index]]
        tokens = np.zeros(self.data.max_seq_len, np.int32)
        tokens[: len(ids)] = ids
        return {
            "images": shift(pixels, self.shift_pixels, f"{self._key}/shift/{row}"),
            "tokens": tokens,
            "token_mask": np.arange(self.data.max_seq_len) < len(ids),
            "caption_ids": np.int32(self._caption_ids[index]),
        }

    def batch(self, step: int, process_index: int = 0, process_count: int = 1) -> CaptionBatch:
        """Returns this process's part of the batch of a step.

        Raises:
            UserError: an image cannot be read; names it and its record.
        """
        rows = process_rows(step, self.global_batch_size, process_index, process_count)
        return stack([self._build_row(row) for row in rows])

    def batches(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[CaptionBatch]:
        """Yields the batches of start_step, start_step + 1, ... without end, prepared ahead."""
        build = functools.partial(
            self.batch, process_index=process_index, process_count=process_count
        )
        return iterate_steps(build, start_step, self.data.num_workers, self.data.prefetch_batches)

    def sample_ids(self, step: int) -> list[str]:
        """Returns FILE:LINE of all examples in the global batch of a step."""
        rows = process_rows(step, self.global_batch_size)
        return [self._images[self._example(row)][2] for row in rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what a step sees, except the pixels of the files."""
        data = self.data
        parts = (self._key, self._weights, data.max_seq_len, data.image_geometry)
        paths = [(source, path) for source, path, _ in self._images]
        content = (paths, self._caption_ids, self._captions)
        size = (self._loaders[0].size, self.global_batch_size, self.shift_pixels)
        return hashlib.sha256(repr((parts, content, size)).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns counts for a dry run and for the log."""
        per_epoch = len(self._order(0))
        return {
            "examples": len(self._images),
            "examples_per_epoch": per_epoch,
            "steps_per_epoch": round(per_epoch / self.global_batch_size, 2),
            "images": len({(source, path) for source, path, _ in self._images}),
            "captions": len(self._captions),
            "longest_caption_tokens": max(map(len, self._captions)),
        }


def shift(
    pixels: Integer[np.ndarray, "height width 3"], shift_pixels: int, key: str
) -> Integer[np.ndarray, "height width 3"]:
    """Returns the image moved by up to `shift_pixels` each way, drawn by `key`; edges repeat."""
    if shift_pixels == 0:
        return pixels
    height, width, _ = pixels.shape
    down, right = (random_bits(key, 2) % np.uint64(2 * shift_pixels + 1)).astype(np.int64).tolist()
    border = (shift_pixels, shift_pixels)
    padded = np.pad(pixels, (border, border, (0, 0)), mode="edge")
    return padded[down : down + height, right : right + width]


def _image_and_caption(record: Record) -> tuple[str, str]:
    conversation = read_conversation(record)
    texts = [
        part.text
        for turn in conversation.turns
        if turn.is_answer
        for part in turn.parts
        if isinstance(part, Text)
    ]
    in_question = [
        part.media
        for turn in conversation.turns
        if not turn.is_answer
        for part in turn.parts
        if isinstance(part, Image)
    ]
    if len(texts) != 1 or len(in_question) != 1 or len(record.images) != 1:
        raise UserError(
            f"{record.where}: the record is no pair of image and caption; expected one image, in "
            "the user's turn, and one answer of text"
        )
    return in_question[0], texts[0].strip()
