"""Which examples share a row, and in what order they come: a pure function of (seed, stage, epoch).

An epoch's plan is computed before its first row is built, on every host alike, so that resuming is
an integer and no host talks to another about data. Lengths are known ahead; pixels are not needed.
`rows.py` turns a planned row into arrays.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.keyed_random import random_order
from metamorph_jax.data.templates import Example
from metamorph_jax.typing import Int, Integer

WINDOW = 64  # rows that are open at once: more packs tighter, fewer keeps closer to random order


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of one epoch.

    Attributes:
        examples: indices of examples, row after row.
        starts: where each row begins in `examples`; one more entry at the end.
    """

    examples: Int[np.ndarray, "examples"]
    starts: Int[np.ndarray, "rows_plus_1"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Int[np.ndarray, "row_examples"]:
        """Returns the indices of the examples of a row."""
        return self.examples[self.starts[row] : self.starts[row + 1]]

    @property
    def fingerprint(self) -> str:
        """A hash that is equal exactly when the plan is."""
        digest = hashlib.sha256()
        for array in (self.examples, self.starts):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        return digest.hexdigest()


def num_shown(size: int, weight: float) -> int:
    """Returns how many examples of a source with `size` of them an epoch shows."""
    return int(weight) * size + round((weight - int(weight)) * size)


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float], key: str
) -> Int[np.ndarray, "examples"]:
    """Returns the examples of one epoch in random order.

    Args:
        sizes: examples per source; they are numbered through, source after source.
        weights: how often each source is shown. Of the fractional part of a weight, a random subset
            of that size is shown once more.
        key: names the draw, for instance "seed/stage/epoch".
    """
    chosen, first = [], 0
    for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        indices = np.arange(first, first + size)
        extra = num_shown(size, weight) - int(weight) * size
        chosen += [indices] * int(weight)
        chosen.append(indices[random_order(f"{key}/fraction/{source}", size)[:extra]])
        first += size
    indices = np.concatenate(chosen)
    return indices[random_order(f"{key}/order", len(indices))]


def pack_rows(
    order: Integer[np.ndarray, "examples"],
    lengths: Integer[np.ndarray, "all"],
    num_images: Integer[np.ndarray, "all"],
    max_seq_len: int,
    max_images: int,
    window: int = WINDOW,
) -> Plan:
    """Returns rows that no example overflows, filled greedily in the given order.

    Each example goes into the oldest open row with room for its tokens and its images; if there is
    none, a row is opened, and beyond `window` open rows the oldest is closed. window=0 gives every
    example its own row. Every example must fit an empty row (`cut_example`).
    """
    smallest = int(lengths[order].min(initial=max_seq_len))
    rows: list[list[int]] = []
    open_rows: list[list] = []  # [examples, free tokens, free images], oldest first
    for index, length, images in zip(
        order.tolist(), lengths[order].tolist(), num_images[order].tolist(), strict=True
    ):
        fitting = (i for i, row in enumerate(open_rows) if row[1] >= length and row[2] >= images)
        place = next(fitting, len(open_rows))
        if place == len(open_rows):
            open_rows.append([[], max_seq_len, max_images])
        row = open_rows[place]
        row[0].append(index)
        row[1] -= length
        row[2] -= images
        if row[1] < smallest or window == 0:
            rows.append(open_rows.pop(place)[0])
        elif len(open_rows) > window:
            rows.append(open_rows.pop(0)[0])
    rows += [row[0] for row in open_rows]
    counts = [len(row) for row in rows]
    return Plan(
        examples=np.array([index for row in rows for index in row], np.int64),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
    )


def cut_example(
    example: Example, max_seq_len: int, max_images: int, keep_dangling_start: bool = False
) -> Example:
    """Returns the longest beginning of an example that fits an empty row.

    Text is cut at `max_seq_len`. An image is kept whole or dropped with all that follows it; its
    image-start goes too, since it would announce, or show, an image that is not there.

    Args:
        example: of any length.
        max_seq_len: T, positions of a row.
        max_images: I, images of a row.
        keep_dangling_start: keep the image-start of the dropped image, as the reference does.

    **Source:** golden case I; metamorph.md section 1.7, rule 6.
    """
    total = len(example.images)
    first_token = np.flatnonzero(example.visual_index >= 0)
    per_image = len(first_token) // total if total else 0
    begins = first_token[:: per_image or 1]
    end, kept = min(len(example), max_seq_len), total
    for image, begin in enumerate(begins.tolist()):
        if begin + per_image > max_seq_len or image >= max_images:
            end, kept = min(end, begin - int(not keep_dangling_start)), image
            break
    if end == len(example):
        return example
    return Example(
        tokens=example.tokens[:end],
        supervised=example.supervised[:end],
        visual_index=example.visual_index[:end],
        images=example.images[:kept],
        image_is_answer=example.image_is_answer[:kept],
        where=example.where,
    )
