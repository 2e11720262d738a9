"""Which examples share a row, and in what order they come: a pure function of (seed, stage, epoch).

An epoch's plan is computed before its first row is built, on every host alike, so that resuming is
an integer and no host talks to another about data. Lengths are known ahead; pixels are not needed.
Rows are filled by exact subset sums over a short queue of waiting examples, so that they are nearly
full although the order stays nearly the drawn one. `rows.py` turns a planned row into arrays.
"""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from metamorph_jax.data.keyed_random import random_order
from metamorph_jax.data.templates import Example, Mixture
from metamorph_jax.typing import Int, Integer

WINDOW = 32  # examples that wait at once: more packs tighter, fewer keeps closer to random order
_CHUNK = 16384  # examples that are Python objects at once


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
        for values in (self.examples, self.starts):
            digest.update(np.ascontiguousarray(values, "<i8").tobytes())
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
    on_progress: Callable[[int], None] = lambda done: None,
) -> Plan:
    """Returns rows that no example overflows: nearly full, and nearly in the given order.

    The example that has waited longest begins a row; those of the other waiting ones that fill it
    best join it. Of equally full choices, the one with the oldest examples is taken, so that nobody
    waits long. Two million examples take 10 s to a minute, and 16 bytes each.

    Args:
        order: examples by index; one may come several times.
        lengths: tokens of each example.
        num_images: images of each example.
        max_seq_len: T, tokens of a row.
        max_images: I, images of a row.
        window: how many examples wait at once; 0 gives every example its own row.
        on_progress: told now and then how many examples are done.

    Raises:
        ValueError: an example does not fit an empty row (`cut_example` makes it fit).
    """
    if lengths[order].max(initial=0) > max_seq_len or num_images[order].max(initial=0) > max_images:
        raise ValueError(
            f"an example has more than {max_seq_len} tokens or {max_images} images; "
            "cut_example makes it fit a row"
        )
    if window == 0:
        return Plan(np.array(order, np.int64), np.arange(len(order) + 1))
    source = _items(order, lengths, num_images, on_progress)
    waiting = list(itertools.islice(source, window))
    examples, starts = array.array("q"), array.array("q", [0])
    while waiting:
        row, waiting = _fill_row(waiting, source, window, max_seq_len, max_images)
        examples.extend([item.index for item in row])
        starts.append(len(examples))
    return Plan(np.array(examples, np.int64), np.array(starts, np.int64))


class _Item(NamedTuple):
    index: int
    length: int
    images: int


def _items(
    order: Integer[np.ndarray, "examples"],
    lengths: Integer[np.ndarray, "all"],
    num_images: Integer[np.ndarray, "all"],
    on_progress: Callable[[int], None],
) -> Iterator[_Item]:
    """Yields the examples in order; only some of them are Python objects at a time."""
    for first in range(0, len(order), _CHUNK):
        on_progress(first)
        part = order[first : first + _CHUNK]
        columns = (part, lengths[part], num_images[part])
        yield from map(_Item._make, zip(*(column.tolist() for column in columns), strict=True))


def _fill_row(
    waiting: list[_Item], source: Iterator[_Item], window: int, free_tokens: int, free_images: int
) -> tuple[list[_Item], list[_Item]]:
    """Returns the examples of the next row, and those that wait after it (oldest first)."""
    row: list[_Item] = []
    while waiting:
        tokens, images = (sum(column) for column in list(zip(*waiting, strict=True))[1:])
        all_fit = tokens <= free_tokens and images <= free_images
        if row and not all_fit:
            break
        taken = waiting if all_fit else waiting[:1]  # a row may hold more than wait at once
        row, waiting = row + taken, waiting[len(taken) :]
        free_tokens -= sum(item.length for item in taken)
        free_images -= sum(item.images for item in taken)
        if all_fit:
            waiting = list(itertools.islice(source, window))
    joins = _best_subset(waiting, free_tokens, max_images=None)
    if sum(item.images for item in itertools.compress(waiting, joins)) > free_images:
        joins = _best_subset(waiting, free_tokens, free_images)
    row += itertools.compress(waiting, joins)
    waiting = [item for item, joined in zip(waiting, joins, strict=True) if not joined]
    return row, waiting + list(itertools.islice(source, window - len(waiting)))


def _best_subset(items: list[_Item], max_tokens: int, max_images: int | None) -> list[bool]:
    """Returns which items to take for the most tokens within the limits, early ones if possible.

    Sets of reachable sums are the bits of one integer: bit t of stripe i is set if some items have
    t tokens and i images. Without a limit on images, all are in stripe 0.
    """
    counted = max_images is not None
    longest = max((item.length for item in items), default=0)
    stripe = max_tokens + longest + 1  # a sum that overflows is masked away in its own stripe
    stripes = range(max_images + 1 if counted else 1)
    one = (1 << (max_tokens + 1)) - 1
    mask = sum(one << (stripe * images) for images in stripes)
    shifts = [item.length + stripe * item.images * counted for item in items]
    reachable = [1]  # with the last 0, 1, 2, ... items
    for shift in reversed(shifts):
        reachable.append(reachable[-1] | (reachable[-1] << shift) & mask)
    sums = [(reachable[-1] >> (stripe * images)) & one for images in stripes]
    best = max(stripes, key=lambda images: sums[images].bit_length())
    goal = stripe * best + sums[best].bit_length() - 1
    taken = []
    for number, shift in enumerate(shifts, start=1):
        rest = reachable[len(items) - number]
        taken.append(shift <= goal and bool((rest >> (goal - shift)) & 1))
        goal -= shift * taken[-1]
    return taken


def cut_example(
    example: Example, max_seq_len: int, max_images: int, keep_dangling_start: bool = False
) -> Example:
    """Returns the longest beginning of an example that fits an empty row.

    Text is cut at `max_seq_len`. An image is kept whole or dropped with all that follows it; its
    image-start goes too, since it would announce, or show, an image that is not there.

    Args:
        example: of any length.
        max_seq_len: T, positions of a row.
        max_images: I, images of a row; an image of several views is as many.
        keep_dangling_start: keep the image-start of the dropped image, as the reference does.

    **Source:** golden case I; metamorph.md section 1.7, rule 6.
    """
    belongs, begins, lengths = np.unique(example.image_index, return_index=True, return_counts=True)
    end, kept = min(len(example), max_seq_len), len(example.images)
    last = [*belongs[1:], kept]  # of several views, the first of the next image
    for image, behind, begin, length in zip(belongs, last, begins, lengths, strict=True):
        if image >= 0 and (begin + length > max_seq_len or behind > max_images):
            dropped = int(example.announced and not keep_dangling_start)
            end, kept = min(end, int(begin) - dropped), int(image)
            break
    if end == len(example):
        return example
    return dataclasses.replace(
        example,
        tokens=example.tokens[:end],
        supervised=example.supervised[:end],
        visual_index=example.visual_index[:end],
        image_index=example.image_index[:end],
        images=example.images[:kept],
        image_is_answer=example.image_is_answer[:kept],
        mixture=example.mixture and Mixture(*(part[:end] for part in example.mixture)),
    )
