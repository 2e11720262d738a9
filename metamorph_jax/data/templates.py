"""Conversation -> Example: token ids, what is supervised, and where visual tokens sit.

A template emits the control ids itself and has every text encoded apart from them, so no content
can end a turn, open one or become an image, and what is supervised follows from who speaks, not
from searching a rendered string. Texts are encoded one by one: the line break of a header never
merges with a line break at the start of a text. `packing.py` is next: which examples share a row.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.conversation import Conversation, Image, Role, Text, Turn
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Bool, Int


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns are written down.

    Attributes:
        num_begin: how many begin-of-text ids open the sequence.
        header_break: text between a header and its turn.
        strip: remove white space around each turn.
        system: whether a system turn can be written.
    """

    name: str
    num_begin: int
    header_break: str
    strip: bool
    system: bool


TEMPLATES = {
    # Two begin-of-text ids: one written by the reference's template, one by its tokenizer.
    # Differences from the reference, all where it loses samples by counting tokens: it masks the
    # whole of a sample with an empty answer (and leaves out that answer's end-of-turn) or with a
    # last turn by the user, where we supervise the answers that are there; and a line break at the
    # start of an answer merges with the header's and is masked, where ours is a supervised token.
    "metamorph_llama3": Template(
        name="metamorph_llama3", num_begin=2, header_break="\n", strip=False, system=False
    ),
    # Source: the published Llama-3 prompt format.
    "llama3": Template(name="llama3", num_begin=1, header_break="\n\n", strip=True, system=True),
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens.

    Attributes:
        tokens: text ids; 0 where a visual token sits.
        supervised: True where the text loss learns to produce this token (from the one before).
        visual_index: which of the example's visual tokens sits here (image * P + token), -1: text.
        images: paths, in order of appearance.
        image_is_answer: per image, whether its visual tokens are to be predicted.
        where: FILE:LINE of its record.
    """

    tokens: Int[np.ndarray, "T"]
    supervised: Bool[np.ndarray, "T"]
    visual_index: Int[np.ndarray, "T"]
    images: tuple[str, ...]
    image_is_answer: tuple[bool, ...]
    where: str

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def visual_is_answer(self) -> Bool[np.ndarray, "T"]:
        """True where a visual token sits that is to be predicted."""
        is_visual = self.visual_index >= 0
        found = np.zeros(len(self), np.bool_)
        per_image = int(is_visual.sum()) // max(len(self.images), 1)
        found[is_visual] = np.repeat(np.array(self.image_is_answer, np.bool_), per_image)
        return found


class _Writer:
    """Collects the tokens of one example."""

    def __init__(self, tokenizer: Tokenizer, num_visual_tokens: int):
        self._tokenizer = tokenizer
        self._num_visual_tokens = num_visual_tokens
        self._tokens: list[int] = []
        self._supervised: list[bool] = []
        self._visual: list[int] = []
        self._images: list[str] = []
        self._answers: list[bool] = []

    def ids(self, ids: Sequence[int], supervised: bool = False) -> None:
        """Appends ids as they are."""
        self._tokens += ids
        self._supervised += [supervised] * len(ids)
        self._visual += [-1] * len(ids)

    def text(self, text: str, supervised: bool = False) -> None:
        """Appends words."""
        self.ids(self._tokenizer.encode_text(text), supervised)

    def image(self, path: str, supervised: bool) -> None:
        """Appends an image with its start and end."""
        special, count = self._tokenizer.special, self._num_visual_tokens
        first = len(self._images) * count
        self.ids([special.image_start], supervised)
        self._tokens += [0] * count
        self._supervised += [False] * count
        self._visual += range(first, first + count)
        # In an answer this one is produced by the hidden state of the last visual token.
        self.ids([special.image_end], supervised)
        self._images.append(path)
        self._answers.append(supervised)

    def header(self, role: Role, header_break: str) -> None:
        """Appends what opens a turn."""
        special = self._tokenizer.special
        self.ids([special.start_header])
        self.text(role)
        self.ids([special.end_header])
        self.text(header_break)

    def example(self, where: str) -> Example:
        """Returns all that was appended."""
        return Example(
            tokens=np.array(self._tokens, np.int32),
            supervised=np.array(self._supervised, np.bool_),
            visual_index=np.array(self._visual, np.int32),
            images=tuple(self._images),
            image_is_answer=tuple(self._answers),
            where=where,
        )


def render_example(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, num_visual_tokens: int
) -> Example:
    """Returns a conversation as a training example.

    Supervised are the texts, images and end-of-turn of each answer; headers and all other turns are
    not. An image in an answer is announced by a supervised image-start.

    Args:
        conversation: what was said.
        template: how it is written.
        tokenizer: for the texts.
        num_visual_tokens: P, positions that each image takes besides its start and end.

    Raises:
        UserError: the conversation has a system turn and the template has none.

    **Source:** golden case G; metamorph.md sections 1.7 and 2.3.
    """
    return _write(conversation, template, tokenizer, num_visual_tokens).example(conversation.where)


def render_prompt(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, num_visual_tokens: int
) -> Example:
    """Returns a conversation that ends with the user, followed by the assistant's open header.

    Raises:
        UserError: the last turn is not by the user, or the template has no system turn.
    """
    if conversation.turns[-1].role != "user":
        raise UserError(f"{conversation.where}: a prompt ends with a turn by the user")
    writer = _write(conversation, template, tokenizer, num_visual_tokens)
    writer.header("assistant", template.header_break)
    return writer.example(conversation.where)


def _write(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, num_visual_tokens: int
) -> _Writer:
    writer = _Writer(tokenizer, num_visual_tokens)
    writer.ids([tokenizer.special.begin_of_text] * template.num_begin)
    for turn in conversation.turns:
        if turn.role == "system" and not template.system:
            raise UserError(
                f"{conversation.where}: template {template.name} has no system turn; "
                "remove the turn or set tokenizer.template to 'llama3'"
            )
        writer.header(turn.role, template.header_break)
        for part in _stripped(turn) if template.strip else turn.parts:
            if isinstance(part, Image):
                writer.image(part.media, turn.is_answer)
            else:
                writer.text(part.text, turn.is_answer)
        writer.ids([tokenizer.special.end_of_turn], turn.is_answer)
    return writer


def _stripped(turn: Turn) -> tuple[Text | Image, ...]:
    """Returns the parts without white space around the whole turn."""
    parts = list(turn.parts)
    if parts and isinstance(parts[0], Text):
        parts[0] = Text(parts[0].text.lstrip())
    if parts and isinstance(parts[-1], Text):
        parts[-1] = Text(parts[-1].text.rstrip())
    return tuple(part for part in parts if part != Text(""))
