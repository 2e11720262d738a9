"""Reads a picture back into shapes, and compares what is there with what was asked for.

Each pixel that differs enough from the background belongs to the colour whose direction, seen from
the background, is nearest to its own: a blurred edge is paler but points the same way. Connected
pixels of a colour are one thing, and its shape is the one that covers it best. On pictures that
`draw.py` made this is exact (a test reads thousands); what it says about others is as good as its
`fit`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.shapes.draw import shape_mask
from metamorph_jax.data.shapes.questions import holds
from metamorph_jax.data.shapes.scene import BACKGROUND, COLORS, SHAPES, SIZES, Item
from metamorph_jax.typing import Bool, Shaped

MIN_COVERAGE = 0.5  # of the way from background to full colour
MIN_AREA = 10  # pixels; the smallest shape has 25
PLACE_TOLERANCE = 4.5  # pixels in each direction; places are 8 apart
_MIN_SIDE, _MAX_SIDE = 4, 32
_LARGE_SIDE = sum(SIZES.values()) / 2
_FIT_SLACK = 2  # pixels by which the side may differ from the extent of what is seen

Picture = Shaped[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A thing in a picture.

    Attributes:
        item: what it looks like most.
        fit: intersection over union with exactly that shape, 1 if it is drawn perfectly.
        side: its extent in pixels.
    """

    item: Item
    fit: float
    side: int


def read_picture(picture: Picture) -> list[Seen]:
    """Returns the things in a uint8 picture, ordered by place: top to bottom, left to right."""
    from scipy import ndimage

    color_index, is_covered = _colors(picture)
    found = []
    for number, color in enumerate(COLORS):
        labels, count = ndimage.label(is_covered & (color_index == number), np.ones((3, 3)))
        for label in range(1, count + 1):
            mask = labels == label
            if mask.sum() >= MIN_AREA:
                found.append(_recognise(mask, color))
    return sorted(found, key=lambda seen: (seen.item.y, seen.item.x))


def _colors(picture: Picture) -> tuple[Shaped[np.ndarray, "height width"], Bool[np.ndarray, "..."]]:
    """Returns the nearest colour of each pixel, and whether there is enough of it."""
    difference = picture.astype(np.float64) - BACKGROUND
    directions = np.array(list(COLORS.values()), np.float64) - BACKGROUND
    lengths = np.linalg.norm(directions, axis=1)
    along = difference @ (directions / lengths[:, None]).T
    nearest = along.argmax(axis=-1)
    strongest = np.take_along_axis(along, nearest[..., None], axis=-1)[..., 0]
    return nearest, strongest / lengths[nearest] >= MIN_COVERAGE


def _recognise(mask: Bool[np.ndarray, "height width"], color: str) -> Seen:
    """Returns the shape, size and place that cover a connected piece best."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    extent = max(bottom - top, right - left)
    area, best = int(mask.sum()), (-1.0, "", 0, 0, 0)
    sides = range(max(_MIN_SIDE, extent - _FIT_SLACK), min(_MAX_SIDE, extent + 1) + 1)
    sums = np.pad(mask, _MAX_SIDE)
    for shape, side in itertools.product(SHAPES, sides):
        template, size = _template(shape, side)
        for y, x in _corners(top, bottom, left, right, side):
            seen = sums[y + _MAX_SIDE : y + _MAX_SIDE + side, x + _MAX_SIDE : x + _MAX_SIDE + side]
            common = int(np.count_nonzero(seen & template))
            best = max(best, (common / (area + size - common), shape, side, y, x))
    fit, shape, side, y, x = best
    size = "large" if side > _LARGE_SIDE else "small"
    return Seen(Item(shape, color, size, x + side // 2, y + side // 2), fit, side)


@functools.cache
def _template(shape: str, side: int) -> tuple[Bool[np.ndarray, "side side"], int]:
    mask = shape_mask(shape, side)
    return mask, int(mask.sum())


def _corners(top: int, bottom: int, left: int, right: int, side: int) -> list[tuple[int, int]]:
    """Returns where the corner of a square of `side` may lie: centred, or a pixel beside that."""
    y, x = (top + bottom - side) // 2, (left + right - side) // 2
    return [(y + dy, x + dx) for dy in (0, 1, -1) for dx in (0, 1, -1)]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A shape that was asked for; None where the request leaves something open.

    Attributes:
        shape: one of `SHAPES`.
        color: one of `COLORS`.
        size: one of `SIZES`.
        place: (x, y) of the centre in pixels.
    """

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    place: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """How much of a request a picture fulfils.

    Attributes:
        count: whether the number of things is right.
        shape: part of the wanted shapes that are there with their shape; so for the others.
        relation: whether all relations hold between the things that were matched.
    """

    count: bool
    shape: float
    color: float
    size: float
    place: float
    relation: bool

    @property
    def all(self) -> bool:
        """Whether everything is right."""
        parts = (self.shape, self.color, self.size, self.place)
        return self.count and self.relation and min(parts) == 1.0


def score_picture(
    picture: Picture,
    wanted: Sequence[Wanted],
    relations: Sequence[tuple[int, str, int]] = (),
) -> Score:
    """Returns what a picture fulfils of a request.

    The things in it are matched with those wanted such that as much as possible is right.

    Args:
        picture: uint8.
        wanted: the shapes asked for.
        relations: such as (0, "left of", 1), by index of `wanted`.
    """
    seen: list[Item | None] = [thing.item for thing in read_picture(picture)]
    matches = [_match(wanted, order) for order in _orders(seen, len(wanted))]
    items, parts = max(matches, key=lambda match: sum(map(sum, match[1])))
    shape, color, size, place = (sum(part) / max(len(wanted), 1) for part in parts)
    if not wanted:
        shape = color = size = place = 1.0
    fulfilled = all(
        items[a] is not None and items[b] is not None and holds(items[a], relation, items[b])
        for a, relation, b in relations
    )
    return Score(len(seen) == len(wanted), shape, color, size, place, fulfilled)


def _orders(seen: Sequence[Item | None], count: int) -> list[tuple[Item | None, ...]]:
    """Returns every way to give `count` wanted shapes a thing each, or none."""
    padded = [*seen[:6], *[None] * max(0, count - len(seen))]
    return list(dict.fromkeys(itertools.permutations(padded, count)))


def _match(
    wanted: Sequence[Wanted], items: tuple[Item | None, ...]
) -> tuple[tuple[Item | None, ...], tuple[list[bool], ...]]:
    """Returns the items, and for shape, colour, size and place which of them are as wanted."""

    def right(name: str) -> list[bool]:
        return [
            item is not None and getattr(want, name) in (None, getattr(item, name))
            for want, item in zip(wanted, items, strict=True)
        ]

    places = [
        item is not None and (want.place is None or _is_near(item, want.place))
        for want, item in zip(wanted, items, strict=True)
    ]
    return items, (right("shape"), right("color"), right("size"), places)


def _is_near(item: Item, place: tuple[int, int]) -> bool:
    distance = max(abs(item.x - place[0]), abs(item.y - place[1]))
    return distance <= PLACE_TOLERANCE
