"""Examples -> the arrays of packed rows (see `Batch` in `metamorph_jax/typing.py`).

Targets are shifted inside each segment, so that nothing is predicted across a border: the last
position of a segment has no target.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metamorph_jax.data.templates import Example
from metamorph_jax.typing import Array, Int

Rows = dict[str, Array]  # the keys and shapes of Batch
Filled = tuple[Sequence[Example], Sequence[Array]]


class Slots(NamedTuple):
    """What an image of a row is given as.

    Attributes:
        name: key of the batch: `images` (pixels) or `features` (what the tower makes of them).
        shape: of one image.
        dtype: of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def pixel_slots(image_size: int) -> Slots:
    """Returns slots for uint8 RGB images of `image_size` pixels a side."""
    return Slots("images", (image_size, image_size, 3), np.dtype(np.uint8))


def build_rows(
    filled: Sequence[Filled],
    slots: Slots,
    *,
    max_seq_len: int,
    max_images: int,
    num_visual_tokens: int,
    has_mixtures: bool = False,
) -> Rows:
    """Returns a batch of rows.

    Args:
        filled: what each row holds: examples, which become segments 1, 2, ... and together fit; and
            the images of all of them, in order.
        slots: what an image is given as.
        max_seq_len: T, positions of a row.
        max_images: I, image slots of a row; unused ones are zero.
        num_visual_tokens: P, visual tokens of an image.
        has_mixtures: whether rows say what each visual token is mixed of.
    """
    rows = empty_rows(len(filled), max_seq_len, max_images, slots, has_mixtures)
    for index, (examples, images) in enumerate(filled):
        row = {name: array[index] for name, array in rows.items()}
        offset = first_visual = 0
        for segment, example in enumerate(examples, start=1):
            _write_segment(row, segment, example, offset, first_visual)
            offset += len(example)
            first_visual += len(example.images) * num_visual_tokens
        for slot, image in enumerate(images):
            row[slots.name][slot] = image
    return rows


def _write_segment(
    row: Rows, segment: int, example: Example, offset: int, first_visual: int
) -> None:
    """Writes an example into its positions, its visual tokens counted from `first_visual`."""
    length = len(example)
    here = slice(offset, offset + length)
    before = slice(offset, offset + length - 1)  # positions whose successor is in the segment
    visual_index = _counted_from(first_visual, example.visual_index)
    row["tokens"][here] = example.tokens
    row["segment_ids"][here] = segment
    row["positions"][here] = np.arange(length)
    row["visual_index"][here] = visual_index
    row["loss_mask"][before] = example.supervised[1:]
    row["targets"][before] = np.where(example.supervised, example.tokens, 0)[1:]
    row["visual_target"][before] = np.where(example.visual_is_answer, visual_index, -1)[1:]
    if "visual_sources" in row:
        row["visual_sources"][here] = _counted_from(first_visual, example.sources.sources)
        row["visual_weights"][here] = example.sources.weights


def _counted_from(first: int, index: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Returns numbers of visual tokens with `first` others before them; what is none stays."""
    return np.where(index >= 0, index + first, index)


def blank_example(length: int) -> Example:
    """Returns an example that takes up `length` positions and teaches nothing."""
    return Example(
        tokens=np.zeros(length, np.int32),
        supervised=np.zeros(length, np.bool_),
        visual_index=np.full(length, -1, np.int32),
        image_index=np.full(length, -1, np.int32),
        images=(),
        image_is_answer=(),
        where="",
    )


def empty_rows(
    num_rows: int, max_seq_len: int, max_images: int, slots: Slots, has_mixtures: bool = False
) -> Rows:
    """Returns rows of padding: no segment, no target, black images."""
    shape = (num_rows, max_seq_len)
    integers = ("tokens", "targets", "segment_ids", "positions")
    rows: Rows = {name: np.zeros(shape, np.int32) for name in integers}
    rows["loss_mask"] = np.zeros(shape, np.bool_)
    rows["visual_index"] = np.full(shape, -1, np.int32)
    rows["visual_target"] = np.full(shape, -1, np.int32)
    if has_mixtures:
        rows["visual_sources"] = np.full((*shape, 4), -1, np.int32)
        rows["visual_weights"] = np.zeros((*shape, 4), np.float32)
    rows[slots.name] = np.zeros((num_rows, max_images, *slots.shape), slots.dtype)
    return rows
