"""Records of every kind, as the fields that a line of a user's own file would have.

    image_qa         {"image": [PNG], "conversations": [question about it, answer]}
    video_qa         {"video": [PNG, ...], "fps": 2, "conversations": [question, answer]}
    text_to_image    {"image": [PNG], "conversations": [request, answer with "<image>"]}
    pure_video       {"video": [PNG, ...], "fps": 2}
    visual_thinking  {"image": [PNG], "boxes": [...], "conversations": [question, answer]}
    image_to_image   {"image": [PNG, PNG], "conversations": [edit, answer with "<image>"]}
    captions         {"image": [PNG], "conversations": ["<image>", caption]}, for an encoder

Each also has `task`, what exactly is asked, and text_to_image `wanted`, what the request says of
each shape. A record is a pure function of (kind, split, index); `source.py` serves them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from metamorph_jax.data.shapes import questions as texts
from metamorph_jax.data.shapes.draw import scene_png
from metamorph_jax.data.shapes.scene import (
    COUNT_LAYOUTS,
    DIRECTIONS,
    FRAMES_PER_SECOND,
    LAYOUTS,
    NUM_FRAMES,
    PIXELS_PER_FRAME,
    RELATION_LAYOUTS,
    SPLITS,
    Draws,
    Item,
    Movement,
    Scene,
    Split,
    draw_equal_items,
    draw_item,
    draw_scene,
    split_of,
)

GENERATION_ANSWER = "Here is an image based on your request: <image>"
_SIZE_LEFT_OUT = 5  # one size word in so many is left out of a request
_BOX_MARGIN = 2  # pixels around a shape
_TRAVEL = (NUM_FRAMES - 1) * PIXELS_PER_FRAME


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a record shows and says.

    Attributes:
        shown: scenes and movements, in order; the last is the one to be understood or drawn.
        fields: all but the pictures, as in a user's file.
    """

    shown: tuple[Scene | Movement, ...]
    fields: dict[str, Any]


def make_sample(kind: str, split: Split, index: int) -> dict[str, Any]:
    """Returns the fields of one record.

    What a record shows (or asks for) at the end is of its split, and nothing that it shows is of a
    later one: training shows no description of the other two, validation none that is held out.

    Args:
        kind: one of `KINDS`.
        split: of `scene.SPLITS`.
        index: any number from 0.
    """
    attempt = 0
    while True:
        sample = KINDS[kind](Draws(f"shapes/{kind}/{split}/{index}/{attempt}"))
        splits = [split_of(shown.description) for shown in sample.shown]
        if splits[-1] == split == max(splits, key=SPLITS.index):
            return {"id": f"{kind}-{split}-{index}", **_media(sample.shown), **sample.fields}
        attempt += 1


def _media(shown: tuple[Scene | Movement, ...]) -> dict[str, Any]:
    """Returns the pictures of a record as PNG files."""
    if isinstance(shown[0], Movement):
        frames = [scene_png(scene) for scene in shown[0].frames()]
        return {"video": frames, "fps": FRAMES_PER_SECOND}
    return {"image": [scene_png(scene) for scene in shown]}


def _turns(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]


def _any_scene(draws: Draws, smallest: int = 1, largest: int = 3) -> Scene:
    count = smallest + draws.below(largest - smallest + 1)
    return draw_scene(draws, draws.one_of(LAYOUTS[count]))


def _image_qa(draws: Draws) -> Sample:
    kind = draws.one_of(texts.QUESTION_KINDS)
    found: list[texts.Question] = []
    while not found:  # three shapes of two colours: none is the only one of its colour
        scene = _any_scene(draws, smallest=2 if kind == "relation" else 1)
        found = texts.questions(scene, kind)
    if kind in ("relation", "count"):  # half of them "Yes.", and as few zeros as other numbers
        answer = draws.one_of(sorted({question.answer for question in found}))
        found = [question for question in found if question.answer == answer]
    question = draws.one_of(found)
    conversation = _turns(f"<image>\n{question.text}", question.answer)
    return Sample((scene,), {"conversations": conversation, "task": kind})


def _moving(draws: Draws) -> Movement:
    """Returns a shape that crosses the picture, in any direction, and perhaps one that stands."""
    direction = draws.one_of(list(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    sideways = draws.one_of((8, 24))
    mover = draw_item(draws, "centre", **_start(dx, dy, sideways))
    items = [mover]
    if draws.below(2):
        other = mover
        while other.shape == mover.shape or other.color == mover.color:
            other = draw_item(draws, "centre")
        along = draws.one_of((8, 16, 24))
        x, y = (along, 32 - sideways) if dx else (32 - sideways, along)
        items.append(dataclasses.replace(other, x=x, y=y))
    return Movement(Scene(tuple(items)), 0, direction)


def _start(dx: int, dy: int, sideways: int) -> dict[str, int]:
    """Returns where a movement starts: so that it ends as far from the other border."""
    x, y = (16 - step * (_TRAVEL // 2) for step in (dx, dy))
    return {"x": x if dx else sideways, "y": y if dy else sideways}


def _video_qa(draws: Draws) -> Sample:
    movement = _moving(draws)
    kind = draws.one_of(texts.VIDEO_QUESTION_KINDS)
    (question,) = texts.video_questions(movement, kind)
    conversation = _turns(question.text, question.answer)
    return Sample((movement,), {"conversations": conversation, "task": kind})


def _pure_video(draws: Draws) -> Sample:
    """A shape alone that starts in the middle of a side and crosses to the other.

    So a single frame at one end tells where it goes, and every frame has one right successor.
    """
    direction = draws.one_of(list(DIRECTIONS))
    mover = draw_item(draws, "centre", **_start(*DIRECTIONS[direction], 16))
    movement = Movement(Scene((mover,)), 0, direction)
    return Sample((movement,), {"task": direction})


def _text_to_image(draws: Draws) -> Sample:
    kind = draws.one_of(("places", "relation", "count"))
    if kind == "count":
        scene = draw_equal_items(draws, draws.one_of(list(COUNT_LAYOUTS)))
        caption, with_sizes, relations = texts.count_caption(scene), (True,) * 3, []
    else:
        with_sizes = tuple(draws.below(_SIZE_LEFT_OUT) > 0 for _ in range(2))
        if kind == "relation":
            relation = draws.one_of(list(RELATION_LAYOUTS))
            scene = draw_scene(draws, RELATION_LAYOUTS[relation])
            caption = texts.relation_caption(scene, relation, with_sizes)
            relations = [[0, relation, 1]]
        else:
            scene, relations = _any_scene(draws, largest=2), []
            with_sizes = with_sizes[: len(scene.items)]
            caption = texts.places_caption(scene, with_sizes)
    fields = {
        "conversations": _turns(f"Generate an image of {caption}.", GENERATION_ANSWER),
        "task": kind,
        "wanted": [
            _wanted(item, with_size, kind == "places")
            for item, with_size in zip(scene.items, with_sizes, strict=False)
        ],
        "relations": relations,
    }
    return Sample((scene,), fields)


def _wanted(item: Item, with_size: bool, with_place: bool) -> dict[str, Any]:
    return {
        "shape": item.shape,
        "color": item.color,
        "size": item.size if with_size else None,
        "place": [item.x, item.y] if with_place else None,
    }


def _visual_thinking(draws: Draws) -> Sample:
    kind = draws.one_of(("color", "shape"))
    found: list[texts.Question] = []
    while not found:
        scene = _any_scene(draws, smallest=2)
        found = texts.questions(scene, kind)
    question = draws.one_of(found)
    left, top, right, bottom = question.item.box
    margin = _BOX_MARGIN
    box = [left - margin, top - margin, right + margin, bottom + margin]
    fields = {
        "boxes": [{"box": [min(max(edge, 0), 32) for edge in box], "name": question.item.name}],
        "conversations": _turns(f"<image>\n{question.text}", question.answer),
        "task": kind,
    }
    return Sample((scene,), fields)


def _image_to_image(draws: Draws) -> Sample:
    kind = draws.one_of(texts.EDIT_KINDS)
    smallest, largest = {"place": (1, 1), "remove": (2, 2)}.get(kind, (1, 2))
    scene = _any_scene(draws, smallest, largest)
    edit = texts.draw_edit(draws, scene, kind)
    conversation = _turns(f"<image>\n{edit.text}", "<image>")
    return Sample((scene, edit.result), {"conversations": conversation, "task": kind})


def _captions(draws: Draws) -> Sample:
    """One to three shapes: what they are, how large, where, or all of it.

    Captions of places alone keep an encoder from forgetting where things are.
    """
    scene = _any_scene(draws)
    kind = draws.one_of(("names", "sizes", "places", "everything"))
    with_sizes = (kind in ("sizes", "everything"),) * len(scene.items)
    if kind == "places":
        caption = " and ".join(f"something at the {item.place}" for item in scene.items)
    elif kind == "everything":
        caption = texts.places_caption(scene, with_sizes)
    else:
        caption = " and ".join(map(texts.name, scene.items, with_sizes))
    return Sample((scene,), {"conversations": _turns("<image>", caption), "task": kind})


KINDS: dict[str, Callable[[Draws], Sample]] = {
    "image_qa": _image_qa,
    "video_qa": _video_qa,
    "text_to_image": _text_to_image,
    "pure_video": _pure_video,
    "visual_thinking": _visual_thinking,
    "image_to_image": _image_to_image,
    "captions": _captions,
}
