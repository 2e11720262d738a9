"""An example cut up for people to look at: runs of text, control tokens, images in their places.

The dry run prints spans, the lint page colours them. Both show what is learned from what was
measured, not from the file: the tokens, decoded again.
"""

import itertools
from typing import NamedTuple

import numpy as np

from metamorph_jax.data.conversation import Conversation, Image
from metamorph_jax.data.media import Media
from metamorph_jax.data.templates import Example
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import visible


class TextSpan(NamedTuple):
    """Neighbouring text tokens of one sort.

    Attributes:
        text: decoded.
        is_supervised: whether the model learns to say it.
        is_control: control tokens, as the template wrote them; a text that only spells them is not.
    """

    text: str
    is_supervised: bool
    is_control: bool


class ImageSpan(NamedTuple):
    """The place of an image.

    Attributes:
        media: of the record.
        is_answer: whether its visual tokens are to be predicted.
        num_tokens: that it takes; 0: not counted.
        number: of the image in its example, from 0; of several views, of the first.
    """

    media: Media
    is_answer: bool
    num_tokens: int
    number: int


Span = TextSpan | ImageSpan


def example_spans(example: Example, tokenizer: Tokenizer) -> list[Span]:
    """Returns all of an example, in order."""
    image = example.image_index
    is_control = np.isin(example.tokens, list(tokenizer.control_ids)) & (image < 0)
    sorts = np.stack([image, example.supervised, is_control])
    changes = np.flatnonzero((np.diff(sorts.astype(np.int64), axis=1) != 0).any(axis=0)) + 1
    bounds = [0, *changes.tolist(), len(example)]
    spans: list[Span] = []
    for begin, end in itertools.pairwise(bounds):
        if begin == end:
            continue
        if image[begin] >= 0:
            number = int(image[begin])
            is_answer = example.image_is_answer[number]
            spans.append(ImageSpan(example.images[number], is_answer, end - begin, number))
        else:
            text = tokenizer.decode(example.tokens[begin:end].tolist())
            spans.append(TextSpan(text, bool(example.supervised[begin]), bool(is_control[begin])))
    return spans


def conversation_spans(conversation: Conversation) -> list[Span]:
    """Returns all of a conversation that no template has written down; who speaks is a control."""
    spans: list[Span] = []
    number = 0
    for turn in conversation.turns:
        spans.append(TextSpan(f"{turn.role}:", False, True))
        for part in turn.parts:
            if isinstance(part, Image):
                spans.append(ImageSpan(part.media, turn.is_answer, 0, number))
                number += 1
            else:
                spans.append(TextSpan(part.text, turn.is_answer, False))
    return spans


def spans_as_text(spans: list[Span]) -> str:
    """Returns spans as text for a terminal: [what is learned], images by their names."""
    pieces: list[str] = []
    inside = False
    for span in spans:
        begins = isinstance(span, TextSpan) and span.is_supervised
        pieces.append("]" * (inside and not begins) + "[" * (begins and not inside))
        inside = begins
        if isinstance(span, TextSpan):
            pieces.append(span.text)
        else:
            kind = "answer image" if span.is_answer else "image"
            pieces.append(f"<{kind} {span.media}, {span.num_tokens} tokens>")
    return visible("".join(pieces)) + "]" * inside
