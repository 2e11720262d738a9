"""The data of a `contrastive` stage: step -> CaptionBatch.

Records are images with captions, or those of LLaVA's pretraining: one image, asked for by the user
and described by the assistant. The batch of step s is a pure function of (seed, s), random shifts
included.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.config.schema_run import DataConfig
from metamorph_jax.data.conversation import Image, Text, read_conversation
from metamorph_jax.data.death_journal import DeathJournal
from metamorph_jax.data.examples import Records
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.geometry import Processor
from metamorph_jax.data.images import GREY, Pixels
from metamorph_jax.data.keyed_random import random_bits
from metamorph_jax.data.loader import iterate_steps, step_rows
from metamorph_jax.data.media import Media
from metamorph_jax.data.packing import epoch_order
from metamorph_jax.data.pipeline import (
    check_epoch,
    check_sources,
    image_loaders,
)
from metamorph_jax.data.quarantine import (
    Built,
    Finding,
    Quarantine,
    find_bad,
    quarantine_file,
)
from metamorph_jax.data.records import Record
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.typing import Array, CaptionBatch, Integer

NO_CAPTION = -1  # caption id of a row that takes no part


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
        processor: family of the tower.
        folder: where quarantine.jsonl is kept; None: nowhere.
        process_index: of this process, for what each writes into a file of its own.

    Raises:
        UserError: a source cannot be read or is never shown.
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
        processor: Processor = "siglip",
        folder: Path | None = None,
        process_index: int = 0,
    ):
        self.data, self.global_batch_size = data, global_batch_size
        self.image_size, self.shift_pixels = image_size, shift_pixels
        check_sources(data)
        self._key, self._tokenizer = f"{seed}/{stage_name}", tokenizer
        self._loaders = image_loaders(data, image_size, pad_color, processor)
        self._records = Records(data, self._key)
        self._weights = [source.weight for source in data.sources]
        check_epoch(data, self._records.sizes)
        file = quarantine_file(folder, process_index) if folder else None
        paths = [source.path for source in data.sources]
        self.quarantine = Quarantine(
            paths, self._records.sizes, data.max_bad_fraction, file, self.fingerprint
        )
        self._journal = DeathJournal(self.quarantine.killers)
        self.quarantine.begin((), functools.partial(find_bad, self._records, self._load))
        self._orders: dict[int, Integer[np.ndarray, "examples"]] = {}

    def _order(self, epoch: int) -> Integer[np.ndarray, "examples"]:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(self._records.sizes, self._weights, f"{self._key}/{epoch}")
            self._orders = dict([*self._orders.items(), (epoch, order)][-2:])
        return order

    def _example(self, row: int) -> int:
        # Every epoch has the same number of examples: fractions of weights are rounded alike.
        epoch, position = divmod(row, len(self._order(0)))
        return int(self._order(epoch)[position])

    def _build_row(self, row: int) -> tuple[dict[str, Array], list[Finding]]:
        index = self._example(row)
        where = self._records.where(index)
        tokens = np.zeros(self.data.max_seq_len, np.int32)
        try:
            with self._journal.entering(where):
                pixels, caption = self._load(index, where)
        except BadSample as error:
            size = (self.image_size, self.image_size, 3)
            built = {"images": np.zeros(size, np.uint8), "tokens": tokens}
            built |= {"token_mask": tokens > 0, "caption_ids": np.int32(NO_CAPTION)}
            return built, [Finding.of(self._records, index, error)]
        ids = self._tokenizer.encode_text(caption)[: self.data.max_seq_len]
        tokens[: len(ids)] = ids
        built = {
            "images": shift(pixels, self.shift_pixels, f"{self._key}/shift/{row}"),
            "tokens": tokens,
            "token_mask": np.arange(self.data.max_seq_len) < len(ids),
            "caption_ids": _caption_id(caption),
        }
        return built, []

    def _load(self, index: int, where: str) -> tuple[Pixels, str]:
        """Returns the image of a record and what is said of it."""
        self._journal.check(where)
        media, caption = image_and_caption(self._records[index])
        return self._loaders[self._records.source_of(index)].load(media, where), caption

    def build(self, step: int, places: Sequence[int] | None = None) -> Built:
        """Returns rows of a step, all or those at some places in it, and what is bad in them."""
        rows = step_rows(step, self.global_batch_size, places)
        built, findings = zip(*map(self._build_row, rows), strict=True)
        batch = {name: np.stack([row[name] for row in built]) for name in built[0]}
        return Built(batch, [finding for found in findings for finding in found])

    def batch(self, step: int, places: Sequence[int] | None = None) -> CaptionBatch:
        """Returns rows of a step, see `build`; bad samples take no part in it."""
        return self.build(step, places).batch

    def batches(
        self, start_step: int = 0, places: Sequence[int] | None = None
    ) -> Iterator[CaptionBatch]:
        """Yields the batches of start_step, start_step + 1, ... without end, prepared ahead.

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
        """Returns FILE:LINE of all examples in the global batch of a step."""
        rows = step_rows(step, self.global_batch_size)
        return [self._records.where(self._example(row)) for row in rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what a step sees, except the pixels of the files."""
        data = self.data
        parts = (self._key, self._weights, data.max_seq_len, data.image_geometry)
        content = (self._records.fingerprint, self._tokenizer.fingerprint)
        pixels = (self.image_size, self._loaders[0].processor, self.shift_pixels)
        size = (pixels, self.global_batch_size)
        return hashlib.sha256(repr((parts, content, size)).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns counts for a dry run and for the log."""
        per_epoch = len(self._order(0))
        return {
            "examples": len(self._records),
            "examples_per_epoch": per_epoch,
            "steps_per_epoch": round(per_epoch / self.global_batch_size, 2),
        }


def shift(
    pixels: Integer[np.ndarray, "height width 3"], shift_pixels: int, key: str
) -> Integer[np.ndarray, "height width 3"]:
    """Returns the image moved by up to `shift_pixels` each way, drawn by `key`; edges repeat."""
    if shift_pixels == 0:
        return pixels
    height, width, _ = pixels.shape
    down, right = (random_bits(key, 2) % np.uint64(2 * shift_pixels + 1)).astype(np.int64).tolist()
    rows = np.clip(np.arange(height) + down - shift_pixels, 0, height - 1)
    columns = np.clip(np.arange(width) + right - shift_pixels, 0, width - 1)
    return pixels[rows[:, None], columns]


def _caption_id(caption: str) -> np.int32:
    """Returns a number that equal captions share; others do not, but once in 2^31 pairs."""
    digest = hashlib.sha256(caption.encode()).digest()
    return np.int32(int.from_bytes(digest[:4], "little") >> 1)


def image_and_caption(record: Record) -> tuple[Media, str]:
    """Returns the one image of a record and what is said of it.

    Raises:
        BadSample: the record is no such pair.
    """
    if record.caption is not None and len(record.images) == 1:
        return record.images[0], record.caption.strip()
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
        raise BadSample(
            "wrong_conversation",
            f"{record.where}: the record is no pair of image and caption; expected one image, in "
            "the user's turn, and one answer of text",
        )
    return in_question[0], texts[0].strip()
