"""What there is to see: one to three shapes on a plain background, standing or moving.

Everything is drawn from a `Draws`, so a scene is a pure function of a key. Pixels are made in
`draw.py`, words in `questions.py`.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, Self, TypeVar

from metamorph_jax.data.keyed_random import random_bits

IMAGE_SIZE = 32  # pixels per side
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (220, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 70, 225),
    "yellow": (235, 200, 30),
    "purple": (165, 40, 175),
}
BACKGROUND = (240, 240, 240)
SIZES = {"small": 7, "large": 13}  # pixels per side of the square that the shape fills
PLACES = {  # where a shape can stand: its centre, in pixels from the left and from the top
    f"{row} {column}".strip() or "centre": (x, y)
    for row, y in (("top", 8), ("", 16), ("bottom", 24))
    for column, x in (("left", 8), ("", 16), ("right", 24))
}
# Two shapes stand so far apart, in one direction at least, that even large ones do not touch.
_MIN_DISTANCE = 16
NUMBERS = ("zero", "one", "two", "three")
MAX_ITEMS = 3
Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")
_NUM_PARTS = 10  # of all descriptions: one is held out, one is for validation

Choice = TypeVar("Choice")


class Draws:
    """Random choices, one after the other, that depend on nothing but a key."""

    def __init__(self, key: str):
        self._key, self._block = key, 0
        self._bits = iter(random_bits(key, 64).tolist())

    def below(self, count: int) -> int:
        """Returns a number from 0 to count - 1."""
        bits = next(self._bits, None)
        if bits is None:
            self._block += 1
            self._bits = iter(random_bits(f"{self._key}/{self._block}", 64).tolist())
            bits = next(self._bits)
        return bits % count

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        """Returns one of the choices."""
        return choices[self.below(len(choices))]

    def shuffled(self, choices: Sequence[Choice]) -> list[Choice]:
        """Returns the choices in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in choices]


@dataclasses.dataclass(frozen=True)
class Item:
    """One shape.

    Attributes:
        shape: one of `SHAPES`.
        color: one of `COLORS`.
        size: one of `SIZES`.
        x: of its centre, in pixels from the left.
        y: of its centre, in pixels from the top.
    """

    shape: str
    color: str
    size: str
    x: int
    y: int

    @property
    def name(self) -> str:
        """Such as "red circle"."""
        return f"{self.color} {self.shape}"

    @property
    def full_name(self) -> str:
        """Such as "small red circle"."""
        return f"{self.size} {self.name}"

    @property
    def place(self) -> str:
        """The nearest of `PLACES`."""
        return min(PLACES, key=lambda p: abs(PLACES[p][0] - self.x) + abs(PLACES[p][1] - self.y))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels; right and bottom lie just outside."""
        half = SIZES[self.size] // 2
        return self.x - half, self.y - half, self.x + half + 1, self.y + half + 1


@dataclasses.dataclass(frozen=True)
class Scene:
    """Shapes on the plain background; none touches another."""

    items: tuple[Item, ...]

    @property
    def description(self) -> str:
        """Shapes, colours and places in a fixed order; sizes are left out."""
        return "; ".join(sorted(f"{item.name} at the {item.place}" for item in self.items))

    def replaced(self, index: int, **changes: object) -> Self:
        """Returns the scene with one shape changed."""
        items = list(self.items)
        items[index] = dataclasses.replace(items[index], **changes)
        return Scene(tuple(items))

    def without(self, index: int) -> Self:
        """Returns the scene with one shape removed."""
        return Scene(self.items[:index] + self.items[index + 1 :])


@dataclasses.dataclass(frozen=True)
class Movement:
    """A scene in which one shape moves steadily.

    Attributes:
        scene: at the beginning.
        mover: index of the shape that moves.
        direction: one of `DIRECTIONS`.
    """

    scene: Scene
    mover: int
    direction: str

    @property
    def description(self) -> str:
        """What stands where at the beginning, and what moves whereto."""
        item = self.scene.items[self.mover]
        return f"{self.scene.description}; the {item.name} moves {self.direction}"

    def frames(self) -> list[Scene]:
        """Returns the scene at all `NUM_FRAMES` times."""
        item = self.scene.items[self.mover]
        dx, dy = (PIXELS_PER_FRAME * step for step in DIRECTIONS[self.direction])
        return [
            self.scene.replaced(self.mover, x=item.x + n * dx, y=item.y + n * dy)
            for n in range(NUM_FRAMES)
        ]


DIRECTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "down": (0, 1), "up": (0, -1)}
NUM_FRAMES, FRAMES_PER_SECOND, PIXELS_PER_FRAME = 8, 2, 2


def _far_apart(places: Sequence[str]) -> bool:
    def distance(a: str, b: str) -> int:
        return max(abs(p - q) for p, q in zip(PLACES[a], PLACES[b], strict=True))

    return all(distance(a, b) >= _MIN_DISTANCE for a, b in itertools.combinations(places, 2))


# All ways in which so many shapes can stand without touching.
LAYOUTS = {
    count: [p for p in itertools.combinations(PLACES, count) if _far_apart(p)]
    for count in range(1, MAX_ITEMS + 1)
}
# How scenes look that are described by a relation or by a number of equal shapes: the words then
# say everything, so that a picture drawn from them is no average of several.
RELATION_LAYOUTS = {"left of": ("left", "right"), "above": ("top", "bottom")}
COUNT_LAYOUTS = {
    1: ("centre",),
    2: ("left", "right"),
    3: ("top left", "top right", "bottom"),
}


def draw_item(draws: Draws, place: str, **known: str) -> Item:
    """Returns a random shape at a place; what is `known` is not drawn."""
    x, y = PLACES[place]
    fields = {
        "shape": draws.one_of(SHAPES),
        "color": draws.one_of(list(COLORS)),
        "size": draws.one_of(list(SIZES)),
        "x": x,
        "y": y,
    }
    return Item(**(fields | known))


def draw_scene(draws: Draws, places: Sequence[str]) -> Scene:
    """Returns shapes at these places; no two have the same shape and colour."""
    items: list[Item] = []
    for place in places:
        item = draw_item(draws, place)
        while any(item.name == other.name for other in items):
            item = draw_item(draws, place)
        items.append(item)
    return Scene(tuple(items))


def draw_equal_items(draws: Draws, count: int) -> Scene:
    """Returns `count` shapes alike in shape, colour and size."""
    first, *others = COUNT_LAYOUTS[count]
    items = [draw_item(draws, first)]
    known = {name: getattr(items[0], name) for name in ("shape", "color", "size")}
    return Scene((*items, *(draw_item(draws, place, **known) for place in others)))


def split_of(description: str) -> Split:
    """Returns which split scenes of this description belong to."""
    part = int(random_bits(f"shapes/heldout/{description}", 1)[0]) % _NUM_PARTS
    return {0: "heldout", 1: "validation"}.get(part, "train")
