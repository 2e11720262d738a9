"""Examples -> the arrays of one packed row (see `Batch` in `metamorph_jax/typing.py`).

Targets are shifted inside each segment, so that nothing is predicted across a border: the last
position of a segment has no target. `pipeline.py` stacks rows into batches.
"""

from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.templates import Example
from metamorph_jax.typing import Array, Shaped

Row = dict[str, Array]  # the keys and shapes of Batch, without its "B"


def build_row(
    examples: Sequence[Example],
    images: Sequence[Shaped[Array, "height width 3"]],
    *,
    max_seq_len: int,
    max_images: int,
    num_visual_tokens: int,
    image_size: int,
) -> Row:
    """Returns one row.

    Args:
        examples: become segments 1, 2, ...; together they fit.
        images: pixels of all their images, in order.
        max_seq_len: T, positions of the row.
        max_images: I, image slots of the row; unused ones are zero.
        num_visual_tokens: P, visual tokens of an image.
        image_size: height and width of the slots, in pixels.
    """
    row = empty_row(max_seq_len, max_images, image_size)
    offset = first_visual = 0
    for segment, example in enumerate(examples, start=1):
        _write_segment(row, segment, example, offset, first_visual)
        offset += len(example)
        first_visual += len(example.images) * num_visual_tokens
    for slot, pixels in enumerate(images):
        row["images"][slot] = pixels
    return row


def _write_segment(
    row: Row, segment: int, example: Example, offset: int, first_visual: int
) -> None:
    """Writes an example into its positions, its visual tokens counted from `first_visual`."""
    length = len(example)
    here = slice(offset, offset + length)
    before = slice(offset, offset + length - 1)  # positions whose successor is in the segment
    is_visual = example.visual_index >= 0
    visual_index = np.where(is_visual, example.visual_index + first_visual, -1)
    row["tokens"][here] = example.tokens
    row["segment_ids"][here] = segment
    row["positions"][here] = np.arange(length)
    row["visual_index"][here] = visual_index
    row["loss_mask"][before] = example.supervised[1:]
    row["targets"][before] = np.where(example.supervised, example.tokens, 0)[1:]
    row["visual_target"][before] = np.where(example.visual_is_answer, visual_index, -1)[1:]


def blank_example(length: int) -> Example:
    """Returns an example that takes up `length` positions and teaches nothing."""
    return Example(
        tokens=np.zeros(length, np.int32),
        supervised=np.zeros(length, np.bool_),
        visual_index=np.full(length, -1, np.int32),
        images=(),
        image_is_answer=(),
        where="",
    )


def empty_row(max_seq_len: int, max_images: int, image_size: int) -> Row:
    """Returns a row of padding: no segment, no target, black images."""
    integers = ("tokens", "targets", "segment_ids", "positions")
    row: Row = {name: np.zeros(max_seq_len, np.int32) for name in integers}
    row["loss_mask"] = np.zeros(max_seq_len, np.bool_)
    row["visual_index"] = np.full(max_seq_len, -1, np.int32)
    row["visual_target"] = np.full(max_seq_len, -1, np.int32)
    row["images"] = np.zeros((max_images, image_size, image_size, 3), np.uint8)
    return row
