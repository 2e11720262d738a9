"""Record -> Conversation: turns made of texts and images, and which turns are answers.

This is the one place in the project where the characters "<image>" mean something, and only in a
record that has images. From here on an image is an `Image` part, and a text is only a text,
whatever it looks like; `templates/` turns both into tokens.
"""

import dataclasses
from typing import Literal

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import Media
from metamorph_jax.data.records import RawTurn, Record

IMAGE_TAG = "<image>"
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclasses.dataclass(frozen=True)
class Text:
    """Words; never empty, and never anything but words."""

    text: str


@dataclasses.dataclass(frozen=True)
class Image:
    """An image, as the record names it."""

    media: Media


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says, in order. Without parts: an empty turn."""

    role: Role
    parts: tuple[Text | Image, ...]

    @property
    def is_answer(self) -> bool:
        """Whether the model learns to say this."""
        return self.role == "assistant"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A dialogue that begins with the user (after an optional system turn) and alternates.

    Attributes:
        where: FILE:LINE for messages.
    """

    turns: tuple[Turn, ...]
    where: str

    @property
    def images(self) -> tuple[Media, ...]:
        """All images, in order of appearance."""
        parts = [part for turn in self.turns for part in turn.parts]
        return tuple(part.media for part in parts if isinstance(part, Image))


def read_conversation(record: Record) -> Conversation:
    """Returns the conversation of a record.

    The n-th image of the turns is the n-th image of the record. Where the file cuts turns up
    itself, it says where images go; elsewhere each "<image>" is one, unless the record has no
    images at all: then "<image>" is text like any other. A first turn by the assistant is dropped
    together with its images, as the reference does.

    Raises:
        BadSample: images and places for them differ in number ("tag_mismatch"), or a speaker is
            unknown, speakers do not alternate or nothing is left ("wrong_conversation"); names
            FILE:LINE.
    """
    pieces = [_pieces(turn, bool(record.images)) for turn in record.turns]
    places = sum(piece is None for turn in pieces for piece in turn)
    if places != len(record.images):
        raise BadSample("tag_mismatch", _mismatch(record, places))
    images = iter(record.images)
    turns = []
    for index, (raw, found) in enumerate(zip(record.turns, pieces, strict=True)):
        if raw.speaker not in ROLES:
            raise BadSample(
                "wrong_conversation",
                f"{record.where}: conversations[{index}] is from {raw.speaker!r}; "
                f"expected one of {', '.join(map(repr, ROLES))}",
            )
        parts = tuple(
            Image(next(images)) if piece is None else Text(piece) for piece in found if piece != ""
        )
        turns.append(Turn(ROLES[raw.speaker], parts))
    return Conversation(_dialogue(turns, record.where), record.where)


def _pieces(turn: RawTurn, has_images: bool) -> list[str | None]:
    """Returns texts, and None where an image goes."""
    if turn.pieces is not None:
        return list(turn.pieces)
    if not has_images:
        return [turn.text]
    first, *rest = turn.text.split(IMAGE_TAG)
    return [first, *(piece for text in rest for piece in (None, text))]


def _dialogue(turns: list[Turn], where: str) -> tuple[Turn, ...]:
    """Drops a leading answer and checks the order of speakers."""
    head = turns[:1] if turns and turns[0].role == "system" else []
    rest = turns[len(head) :]
    if rest and rest[0].role == "assistant":
        rest = rest[1:]
    if not rest:
        raise BadSample(
            "wrong_conversation", f"{where}: no turn by the user is left; add one from 'human'"
        )
    for index, turn in enumerate(rest):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise BadSample(
                "wrong_conversation",
                f"{where}: turn {index + 1} of the dialogue is by the {turn.role}, expected the "
                f"{expected}; 'human' and 'gpt' must alternate",
            )
    return (*head, *rest)


def _mismatch(record: Record, places: int) -> str:
    listed = ", ".join(repr(str(image)) for image in record.images) or "none"
    if places > len(record.images):
        advice = "list the missing images under 'image' or remove the surplus tags"
    else:
        advice = 'put one "<image>" into the conversation where each image belongs'
    return (
        f"{record.where}: the conversation has {places} {IMAGE_TAG} tag(s), but the record lists "
        f"{len(record.images)} image(s): {listed}; {advice}"
    )
