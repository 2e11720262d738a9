"""Conversation -> Example: token ids, what is supervised, and where visual tokens sit.

Control ids are written by name, texts are encoded apart from them, so no content can end a turn,
open one or become an image, and what is supervised follows from who speaks.
"""

from collections.abc import Iterable

import numpy as np

from metamorph_jax.data.conversation import Conversation
from metamorph_jax.data.media import Media
from metamorph_jax.data.templates.example import Example
from metamorph_jax.data.templates.jinja import JinjaTemplate
from metamorph_jax.data.templates.segments import (
    BEGIN,
    BEGIN_IF_ADDED,
    END,
    IMAGE_END,
    IMAGE_START,
    ImageSlot,
    Segment,
    Words,
)
from metamorph_jax.data.templates.template import Template
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError

AnyTemplate = Template | JinjaTemplate


def render_example(
    conversation: Conversation, template: AnyTemplate, tokenizer: Tokenizer, num_visual_tokens: int
) -> Example:
    """Returns a conversation as a training example.

    Supervised are the texts, images and ends of the answers, and what else the template says. An
    image in an answer is announced by a supervised image-start.

    Args:
        conversation: what was said.
        template: how it is written.
        tokenizer: for the texts.
        num_visual_tokens: P, positions that each image takes besides its start and end.

    Raises:
        BadSample: the template cannot write this conversation.
        UserError: the tokenizer lacks a token that the template needs.

    **Source:** golden cases of tests/golden/llava and G of tests/golden/metamorph.
    """
    writer = _Writer(template, tokenizer, num_visual_tokens)
    writer.write(_segments(conversation, template, tokenizer, open_answer=False))
    example = writer.example(conversation.where)
    if always := _always_supervised(template, tokenizer):
        is_text = example.visual_index < 0
        example.supervised[:] |= is_text & np.isin(example.tokens, always)
    return example


def render_prompt(
    conversation: Conversation, template: AnyTemplate, tokenizer: Tokenizer, num_visual_tokens: int
) -> Example:
    """Returns a conversation that ends with the user, followed by the assistant's open header.

    Raises:
        UserError: the last turn is not by the user, or the template cannot write the conversation.
    """
    if conversation.turns[-1].role != "user":
        raise UserError(f"{conversation.where}: a prompt ends with a turn by the user")
    writer = _Writer(template, tokenizer, num_visual_tokens)
    writer.write(_segments(conversation, template, tokenizer, open_answer=True))
    example = writer.example(conversation.where)
    example.supervised[:] = False
    return example


def stop_ids(template: AnyTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids that end an answer; the template's own end of a turn is the first."""
    ids = [control_id(name, template, tokenizer) for name in template.stop_names(tokenizer)]
    end = tokenizer.special.end_of_text
    return tuple(dict.fromkeys([*ids, *([] if end is None else [end])]))


def control_id(name: str, template: AnyTemplate, tokenizer: Tokenizer) -> int:
    """Returns the id of a control token of a template.

    Raises:
        UserError: the tokenizer has no such token.
    """
    if name in tokenizer.names:
        return tokenizer.names[name]
    special = tokenizer.special
    generic = {
        BEGIN: (special.begin_of_text, "<s>"),
        END: (special.end_of_text, "</s>"),
        IMAGE_START: (special.image_start, "<image_start>"),
        IMAGE_END: (special.image_end, "<image_end>"),
    }
    found, usual = generic.get(name, (None, name))
    if found is not None:
        return found
    return tokenizer.control_id(usual, f"template {template.name}")


def check_template(template: AnyTemplate, tokenizer: Tokenizer) -> None:
    """Raises UserError unless the tokenizer has every token that the template writes."""
    names = [*template.stop_names(tokenizer)]
    names += template.controls if isinstance(template, Template) else ()
    names += (IMAGE_START, IMAGE_END) if template.image_tokens else ()
    for name in names:
        control_id(name, template, tokenizer)


def _segments(
    conversation: Conversation, template: AnyTemplate, tokenizer: Tokenizer, open_answer: bool
) -> Iterable[Segment]:
    if isinstance(template, JinjaTemplate):
        return template.segments(conversation, tokenizer, open_answer)
    return template.segments(conversation, open_answer)


def _always_supervised(template: AnyTemplate, tokenizer: Tokenizer) -> list[int]:
    ids = []
    for name in template.always_supervised:
        if name in tokenizer.names:
            ids.append(tokenizer.names[name])
        else:
            ids += tokenizer.encode_text(name)
    return ids


class _Writer:
    """Collects the tokens of one example."""

    def __init__(self, template: AnyTemplate, tokenizer: Tokenizer, num_visual_tokens: int):
        self._template, self._tokenizer = template, tokenizer
        self._num_visual_tokens = num_visual_tokens
        self._tokens: list[int] = []
        self._supervised: list[bool] = []
        self._visual: list[int] = []
        self._image_of: list[int] = []
        self._images: list[Media] = []
        self._answers: list[bool] = []
        self._run: list[Words] = []
        self._at_start = True

    def write(self, segments: Iterable[Segment]) -> None:
        """Appends segments."""
        for segment in segments:
            if isinstance(segment, Words):
                self._run.append(segment)
                continue
            self._end_run()
            if isinstance(segment, ImageSlot):
                self._image(segment)
                self._at_start = True
            elif segment.name == BEGIN_IF_ADDED:
                if self._tokenizer.adds_begin:
                    self._append([self._tokenizer.special.begin_of_text], [False])
            else:
                id_ = control_id(segment.name, self._template, self._tokenizer)
                self._append([id_], [segment.supervised])
                self._at_start = False
        self._end_run()

    def _end_run(self) -> None:
        """Encodes the words since the last control token or image."""
        if not self._run:
            return
        texts: list[str] = []
        supervised: list[bool] = []
        for words in self._run:
            if texts and not words.apart and supervised[-1] == words.supervised:
                texts[-1] += words.text
            else:
                texts.append(words.text)
                supervised.append(words.supervised)
        found = self._tokenizer.encode_run(texts, self._at_start)
        self._append([id_ for id_, _ in found], [supervised[index] for _, index in found])
        self._at_start = self._at_start and not found
        self._run = []

    def _append(self, ids: list[int], supervised: list[bool]) -> None:
        self._tokens += ids
        self._supervised += supervised
        self._visual += [-1] * len(ids)
        self._image_of += [-1] * len(ids)

    def _image(self, slot: ImageSlot) -> None:
        count = self._num_visual_tokens
        first = len(self._images) * count
        self._tokens += [0] * count
        self._supervised += [False] * count
        self._visual += range(first, first + count)
        self._image_of += [len(self._images)] * count
        self._images.append(slot.media)
        self._answers.append(slot.supervised)

    def example(self, where: str) -> Example:
        """Returns all that was written."""
        return Example(
            tokens=np.array(self._tokens, np.int32),
            supervised=np.array(self._supervised, np.bool_),
            visual_index=np.array(self._visual, np.int32),
            image_index=np.array(self._image_of, np.int32),
            images=tuple(self._images),
            image_is_answer=tuple(self._answers),
            where=where,
            announced=self._template.image_tokens,
        )
