"""Record -> Conversation: turns made of texts and images, and which turns are answers.

This is the one place in the project where the characters "<image>" mean something. From here on an
image is an `Image` part, and a text is only a text, whatever it looks like; `templates.py` turns
both into tokens.
"""

import dataclasses
from typing import Literal

from metamorph_jax.data.media import Media
from metamorph_jax.data.records import Record
from metamorph_jax.errors import UserError

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
    """An image of the record."""

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
    def images(self) -> tuple[str, ...]:
        """Paths of all images, in order of appearance."""
        parts = [part for turn in self.turns for part in turn.parts]
        return tuple(part.media for part in parts if isinstance(part, Image))


def read_conversation(record: Record) -> Conversation:
    """Returns the conversation of a record.

    The n-th "<image>" of the texts is the n-th image of the record. A first turn by the assistant
    is dropped together with its images, as the reference does.

    Raises:
        UserError: tags and images differ in number, a speaker is unknown, speakers do not
            alternate, or nothing is left; names FILE:LINE.
    """
    tags = sum(turn.text.count(IMAGE_TAG) for turn in record.turns)
    if tags != len(record.images):
        raise UserError(_mismatch(record, tags))
    paths = iter(record.images)
    turns = []
    for index, raw in enumerate(record.turns):
        if raw.speaker not in ROLES:
            raise UserError(
                f"{record.where}: conversations[{index}] is from {raw.speaker!r}; "
                f"expected one of {', '.join(map(repr, ROLES))}"
            )
        pieces = raw.text.split(IMAGE_TAG)
        parts: list[Text | Image] = [Text(pieces[0])]
        for piece in pieces[1:]:
            parts += [Image(next(paths)), Text(piece)]
        turns.append(Turn(ROLES[raw.speaker], tuple(part for part in parts if part != Text(""))))
    return Conversation(_dialogue(turns, record.where), record.where)


def _dialogue(turns: list[Turn], where: str) -> tuple[Turn, ...]:
    """Drops a leading answer and checks the order of speakers."""
    head = turns[:1] if turns[0].role == "system" else []
    rest = turns[len(head) :]
    if rest and rest[0].role == "assistant":
        rest = rest[1:]
    if not rest:
        raise UserError(f"{where}: no turn by the user is left; add one from 'human'")
    for index, turn in enumerate(rest):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise UserError(
                f"{where}: turn {index + 1} of the dialogue is by the {turn.role}, expected the "
                f"{expected}; 'human' and 'gpt' must alternate"
            )
    return (*head, *rest)


def _mismatch(record: Record, tags: int) -> str:
    listed = ", ".join(map(repr, record.images)) or "none"
    if tags > len(record.images):
        advice = "list the missing images under 'image' or remove the surplus tags"
    else:
        advice = 'put one "<image>" into the conversation where each image belongs'
    return (
        f"{record.where}: the conversation has {tags} {IMAGE_TAG} tag(s), but the record lists "
        f"{len(record.images)} image(s): {listed}; {advice}"
    )
