"""What is said about scenes: questions with their exact answers, captions, and edits.

The sentences are short and draw on few words, so that a small model learns them in minutes.
`samples.py` makes records of them.
"""

import dataclasses
import itertools

from metamorph_jax.data.shapes.scene import (
    COLORS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    Draws,
    Item,
    Movement,
    Scene,
)

QUESTION_KINDS = ("color", "shape", "size", "place", "count", "relation")
VIDEO_QUESTION_KINDS = ("direction", "mover", "end")
EDIT_KINDS = ("color", "shape", "size", "place", "remove")
# Shapes whose centres are nearer than this in a direction have no order in it.
_MIN_STEP = 5


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its one right answer.

    Attributes:
        kind: what it asks for, of `QUESTION_KINDS` or `VIDEO_QUESTION_KINDS`.
        text: as it is asked.
        answer: the whole sentence.
        item: the shape it is about, if it is about a single one.
    """

    kind: str
    text: str
    answer: str
    item: Item | None = None


def questions(scene: Scene, kind: str) -> list[Question]:
    """Returns all questions of a kind that the scene answers; none is ambiguous."""
    return _ASKERS[kind](scene)


def _ask_color(scene: Scene) -> list[Question]:
    return [
        Question("color", f"What color is the {item.shape}?", f"It is {item.color}.", item)
        for item in _only_ones(scene, "shape")
    ]


def _ask_shape(scene: Scene) -> list[Question]:
    return [
        Question("shape", f"What shape is the {item.color} object?", f"It is a {item.shape}.", item)
        for item in _only_ones(scene, "color")
    ]


def _ask_size(scene: Scene) -> list[Question]:
    return [
        Question("size", f"Is the {item.name} small or large?", f"It is {item.size}.", item)
        for item in scene.items
    ]


def _ask_place(scene: Scene) -> list[Question]:
    return [
        Question("place", f"Where is the {item.name}?", f"It is at the {item.place}.", item)
        for item in scene.items
    ]


def _ask_count(scene: Scene) -> list[Question]:
    groups = {"objects": len(scene.items)}
    for color in COLORS:
        groups[f"{color} objects"] = sum(item.color == color for item in scene.items)
    for shape in SHAPES:
        groups[plural(shape)] = sum(item.shape == shape for item in scene.items)
    return [
        Question("count", f"How many {what} are there?", f"There {_is(n)} {NUMBERS[n]}.")
        for what, n in groups.items()
    ]


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _ask_relation(scene: Scene) -> list[Question]:
    found = []
    for a, b in itertools.permutations(scene.items, 2):
        for relation in ("left of", "right of", "above", "below"):
            answer = "Yes." if holds(a, relation, b) else "No."
            text = f"Is the {a.name} {relation} the {b.name}?"
            found.append(Question("relation", text, answer))
    return found


_ASKERS = {
    "color": _ask_color,
    "shape": _ask_shape,
    "size": _ask_size,
    "place": _ask_place,
    "count": _ask_count,
    "relation": _ask_relation,
}


def holds(a: Item, relation: str, b: Item) -> bool:
    """Returns whether `a` is "left of", "right of", "above" or "below" `b`, by their centres."""
    steps = {
        "left of": b.x - a.x,
        "right of": a.x - b.x,
        "above": b.y - a.y,
        "below": a.y - b.y,
    }
    return steps[relation] >= _MIN_STEP


def _only_ones(scene: Scene, attribute: str) -> list[Item]:
    """Returns the shapes that share their shape (or colour) with no other."""
    values = [getattr(item, attribute) for item in scene.items]
    return [item for item in scene.items if values.count(getattr(item, attribute)) == 1]


def video_questions(movement: Movement, kind: str) -> list[Question]:
    """Returns the questions of a kind about a movement."""
    mover = movement.scene.items[movement.mover]
    end = movement.frames()[-1].items[movement.mover]
    if kind == "direction":
        text = f"Which way does the {mover.shape} move?"
        return [Question(kind, text, f"It moves {movement.direction}.", mover)]
    if kind == "mover":
        return [Question(kind, "Which object moves?", f"The {mover.name} moves.", mover)]
    return [Question("end", f"Where does the {mover.shape} end?", f"At the {end.place}.", mover)]


def plural(shape: str) -> str:
    """Returns the plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def name(item: Item, with_size: bool = True) -> str:
    """Returns a shape with its article: "a small red circle"."""
    return f"a {item.full_name if with_size else item.name}"


def places_caption(scene: Scene, with_sizes: tuple[bool, ...]) -> str:
    """Returns such as "a small red circle at the top left and a blue square at the bottom"."""
    parts = [
        f"{name(item, with_size)} at the {item.place}"
        for item, with_size in zip(scene.items, with_sizes, strict=True)
    ]
    return " and ".join(parts)


def relation_caption(scene: Scene, relation: str, with_sizes: tuple[bool, ...]) -> str:
    """Returns such as "a small red circle left of a blue square", of a scene of two."""
    first, second = map(name, scene.items, with_sizes)
    return f"{first} {relation} {second}"


def count_caption(scene: Scene) -> str:
    """Returns such as "three small red circles", of a scene of equal shapes."""
    item, count = scene.items[0], len(scene.items)
    if count == 1:
        return f"one {item.full_name}"
    return f"{NUMBERS[count]} {item.size} {item.color} {plural(item.shape)}"


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change that somebody asks for.

    Attributes:
        kind: one of `EDIT_KINDS`.
        text: the request.
        result: the scene after it.
    """

    kind: str
    text: str
    result: Scene


def draw_edit(draws: Draws, scene: Scene, kind: str) -> Edit:
    """Returns a random change of one shape of the scene.

    Args:
        draws: decides.
        scene: with one shape if `kind` is "place", with two or more if it is "remove".
        kind: one of `EDIT_KINDS`.
    """
    index = draws.below(len(scene.items))
    item = scene.items[index]
    it = "it" if len(scene.items) == 1 else f"the {item.name}"
    if kind == "remove":
        return Edit(kind, f"Remove the {item.name}.", scene.without(index))
    if kind == "place":
        place = draws.one_of([place for place in PLACES if place != item.place])
        x, y = PLACES[place]
        return Edit(kind, f"Move {it} to the {place}.", scene.replaced(index, x=x, y=y))
    choices = {"color": COLORS, "shape": SHAPES, "size": SIZES}[kind]
    value = draws.one_of([value for value in choices if value != getattr(item, kind)])
    article = "a " if kind == "shape" else ""
    return Edit(kind, f"Make {it} {article}{value}.", scene.replaced(index, **{kind: value}))
