"""Emitted steps -> an answer: its text, where its pictures are, and their visual tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from metamorph_jax.data.conversation import IMAGE_TAG
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.decoding.loop import UNUSED_STEP, VISUAL_STEP
from metamorph_jax.typing import Float, Int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: with "<image>" where a picture is, without control ids.
        ids: emitted text ids, those of image start and end and of the end of the turn included.
        steps: everything emitted, in order: an id, or -1 for a visual token.
        visual_tokens: of each picture, in order.
        finish: whether the answer ended by itself or was cut at its limit.
        well_formed: it ended by itself, and the model would have kept the rules of `loop.py`
            without being made to: after each image its own likeliest token was `<image_end>`, and
            nowhere was it one that may not stand there.
    """

    text: str
    ids: list[int]
    steps: list[int]
    visual_tokens: Float[np.ndarray, "I P E"]
    finish: Literal["end_of_turn", "length"]
    well_formed: bool


def create_answer(
    steps: Int[np.ndarray, "N"],
    visual: Float[np.ndarray, "N E"],
    followed: bool,
    tokenizer: Tokenizer,
    stop: Sequence[int],
    num_visual_tokens: int,
) -> Answer:
    """Returns the answer of one row of a `DecodeResult`.

    Args:
        steps: of the row.
        visual: of the row.
        followed: of the row.
        tokenizer: for the text.
        stop: ids that end an answer.
        num_visual_tokens: P.
    """
    emitted = [int(step) for step in steps if step != UNUSED_STEP]
    num_images = emitted.count(VISUAL_STEP) // num_visual_tokens
    ids = [step for step in emitted if step != VISUAL_STEP]
    ended = bool(ids) and ids[-1] in stop
    shape = (num_images, num_visual_tokens, visual.shape[-1])
    return Answer(
        text=_text(ids, tokenizer, stop),
        ids=ids,
        steps=emitted,
        visual_tokens=visual[steps == VISUAL_STEP].reshape(shape),
        finish="end_of_turn" if ended else "length",
        well_formed=ended and followed,
    )


def _text(ids: Sequence[int], tokenizer: Tokenizer, stop: Sequence[int]) -> str:
    """Returns the text of an answer; what is between two pictures is decoded in one piece."""
    special = tokenizer.special
    text, piece = "", []
    for id_ in ids:
        if id_ == special.image_start:
            text, piece = text + tokenizer.decode(piece) + IMAGE_TAG, []
        elif id_ != special.image_end and id_ not in stop:
            piece.append(id_)
    return text + tokenizer.decode(piece)
