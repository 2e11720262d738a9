"""Questions whose answer first shows what it looks at: a region cut out, or boxes drawn."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn, read_conversation
from metamorph_jax.data.kinds.material import Material, images_in
from metamorph_jax.data.kinds.wordings import KEY_ELEMENTS, THINKING_REQUESTS, THOUGHTS
from metamorph_jax.data.media import Boxed, Crop, ImageBytes, Media, NamedBox

MAX_BOXES = 100
_BOX_MARK = "###"  # Visual CoT: path###[left, top, right, bottom]
_ANSWER_TURN = 3  # of its records: question, box, "<image>", answer
# What published sets put behind the question: Visual CoT asks for a box, V* lists what it found.
_SURPLUS = re.compile(
    r"(?:please\s+)?provide\s+the\s+bounding\s+box|additional visual information to focus on:",
    re.IGNORECASE,
)


def visual_thinking(material: Material) -> Conversation:
    """Returns a question and an answer of a thinking prefix, an image, and the record's answer.

    The image is a `Crop` that holds all boxes, or the whole with the boxes drawn (`Boxed`), as
    `source.thinking_image` says. Records are those of Visual CoT (the second image is
    "PATH###BOX"), of V* (`target_instances`, with `name` and `bbox` = [left, top, width, height]),
    or have `boxes`: {"box": [left, top, right, bottom], "name": ...}. Without any, a conversation
    whose answer already shows an image is taken as it is. Only the first answer is changed.

    Raises:
        BadSample: there are no such boxes, or no question and answer to put them in.
    """
    extra, images = material.record.extra, material.record.images
    if not material.record.turns:
        raise material.bad(
            "malformed_record", "the record has no 'conversations'; expected question and answer"
        )
    if extra.get("boxes") is not None:  # tables write null where there is nothing
        boxes = _read_boxes(material, "boxes", "box", lambda box: box)
    elif extra.get("target_instances") is not None:
        boxes = _read_boxes(material, "target_instances", "bbox", _corners)
    elif len(images) == 2 and isinstance(images[1], str) and _BOX_MARK in images[1]:
        return _think(material, _visual_cot(material), _marked_box(material, images[1]))
    else:
        conversation = read_conversation(material.record)
        if any(turn.is_answer and images_in(turn) for turn in conversation.turns):
            return conversation
        raise material.bad(
            "malformed_record",
            "the record has no boxes to look at; expected 'boxes': "
            '[{"box": [left, top, right, bottom], "name": "..."}], or an image in an answer',
        )
    return _think(material, read_conversation(material.record), boxes)


def _think(
    material: Material, conversation: Conversation, boxes: tuple[NamedBox, ...]
) -> Conversation:
    """Returns the conversation with words before its question, and the image before its answer."""
    turns = list(conversation.turns)
    place = next(index for index, turn in enumerate(turns) if turn.role == "user")
    images = [part for part in turns[place].parts if isinstance(part, Image)]
    answer = turns[place + 1].parts if place + 1 < len(turns) else ()
    words = "".join(part.text for part in answer if isinstance(part, Text)).strip()
    if len(images) != 1 or len(conversation.images) != 1 or not words:
        raise material.bad(
            "wrong_conversation",
            "visual thinking needs one image, in the first question, and an answer in words",
        )
    whole = conversation.images[0]
    thought = material.draw.choice("thought", THOUGHTS[material.source.thinking_image])
    if all(box.name for box in boxes):
        names = KEY_ELEMENTS.format(names=_listed([box.name for box in boxes]))
        thought = f"{names} {thought}".strip()
    image = Image(_look(whole, boxes, material.source.thinking_image))
    lead = (Text(f"{thought} "),) if thought else ()
    turns[place] = _ask(material, turns[place])
    turns[place + 1] = Turn("assistant", (*lead, image, Text(f" {words}")))
    return dataclasses.replace(conversation, turns=tuple(turns))


def _ask(material: Material, turn: Turn) -> Turn:
    """Returns the question without its surplus, behind a request to think."""
    request = material.draw.choice("request", THINKING_REQUESTS)
    parts, asked = [], False
    for part in turn.parts:
        if isinstance(part, Text):
            surplus = _SURPLUS.search(part.text)
            text = part.text[: surplus.start()].rstrip(" ") if surplus else part.text
            question = text.strip()
            if question and not asked and request:
                gap = text[: len(text) - len(text.lstrip())]
                text = f"{gap}{request} {text.lstrip()}"
            asked = asked or bool(question)
            part = Text(text)
        if part != Text(""):
            parts.append(part)
    if not asked:
        raise material.bad(
            "wrong_conversation", "nothing is asked; expected a question about the image"
        )
    return dataclasses.replace(turn, parts=tuple(parts))


def _look(whole: str | ImageBytes, boxes: tuple[NamedBox, ...], how: str) -> Media:
    if how == "boxes":
        return Boxed(whole, boxes)
    lefts, tops, rights, bottoms = zip(*(box.box for box in boxes), strict=True)
    return Crop(whole, (min(lefts), min(tops), max(rights), max(bottoms)))


def _visual_cot(material: Material) -> Conversation:
    """Returns question and answer of a Visual CoT record, without the talk about its box."""
    record = material.record
    if len(record.turns) <= _ANSWER_TURN:
        raise material.bad(
            "wrong_conversation",
            f"a Visual CoT record has four turns (question, box, image, answer), this one "
            f"{len(record.turns)}",
        )
    turns = (record.turns[0], record.turns[_ANSWER_TURN])
    return read_conversation(dataclasses.replace(record, images=record.images[:1], turns=turns))


def _marked_box(material: Material, image: str) -> tuple[NamedBox, ...]:
    path, _, text = image.rpartition(_BOX_MARK)
    try:
        box = json.loads(text)
    except (ValueError, RecursionError):
        box = None
    return (NamedBox(_numbers(material, box, f"image {path + _BOX_MARK!r}")),)


def _read_boxes(
    material: Material, key: str, box_key: str, corners: Callable[[Any], Any]
) -> tuple[NamedBox, ...]:
    entries = material.record.extra[key]
    if not isinstance(entries, list | tuple) or not 1 <= len(entries) <= MAX_BOXES:
        raise material.bad(
            "malformed_record", f"{key!r} is no list of boxes; expected 1 to {MAX_BOXES} of them"
        )
    boxes = []
    for index, entry in enumerate(entries):
        place = f"{key}[{index}]"
        name = entry.get("name") or "" if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise material.bad(
                "malformed_record",
                f'{place} is no box; expected {{"{box_key}": [four numbers], "name": "..."}}',
            )
        box = _numbers(material, corners(entry.get(box_key)), f"{place}[{box_key!r}]")
        boxes.append(NamedBox(box, name.strip()))
    return tuple(boxes)


def _corners(box: Any) -> Any:
    """Returns [left, top, width, height] as corners; other things as they are."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return box
    left, top, width, height = box
    return [left, top, left + width, top + height]


def _numbers(material: Material, box: Any, place: str) -> tuple[float, float, float, float]:
    if isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_number, box)):
        left, top, right, bottom = map(float, box)
        if left < right and top < bottom:
            return left, top, right, bottom
    raise material.bad(
        "malformed_record",
        f"{place} is no box; expected four numbers in pixels, left < right and top < bottom",
    )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e9  # false for NaN, too


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
