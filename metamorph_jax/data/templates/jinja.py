"""The tokenizer folder's own chat template (jinja), safely.

The template never sees what was said. Every text and image is a placeholder character while it
runs; what it writes around them is its own and is cut into control tokens and words; then texts
and images take the place of the characters. So no content can be mistaken for the template's.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from metamorph_jax.data.conversation import Conversation, Image, Role, Text
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.templates.segments import (
    IMAGE_END,
    IMAGE_START,
    Control,
    ImageSlot,
    Segment,
    Words,
    markup_segments,
)
from metamorph_jax.data.templates.template import unannounced
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError

_FIRST = 0xF0000  # a private plane of Unicode; one character per part of the conversation
_MARKS = re.compile("[\U000f0000-\U000ffffd]")
_EDGE = "\u2003"  # white space that templates do not write: gone, if the template strips content

Shape = tuple[tuple[Role, int], ...]  # role and number of parts of each turn


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where a part of the conversation goes.

    Attributes:
        part: its number, counted through all turns.
        strip: remove white space at its beginning, at its end.
        is_answer: it is learned.
        opens: it is the first of what the model says.
    """

    part: int
    strip: tuple[bool, bool]
    is_answer: bool
    opens: bool


_Piece = _Slot | Control | Words


@dataclasses.dataclass(frozen=True)
class JinjaTemplate:
    """The chat template of the tokenizer's folder.

    Attributes:
        name: in recipes.
        image_tokens: as in `Template`.
    """

    name: str = "jinja"
    image_tokens: bool = True
    always_supervised: tuple[str, ...] = ()

    def stop_names(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Returns the control tokens that end an answer; none if the template writes none.

        Raises:
            UserError: the folder has no usable chat template.
        """
        source, shape = _source(tokenizer), (("user", 1), ("assistant", 1))
        try:
            pieces = _skeleton(source, shape, False)
        except _RefusedError as error:
            raise UserError(f"{tokenizer.path}: the chat template {error}") from None
        return tuple(
            piece.name for piece in pieces if isinstance(piece, Control) and piece.supervised
        )

    def segments(
        self, conversation: Conversation, tokenizer: Tokenizer, open_answer: bool
    ) -> Iterator[Segment]:
        """Yields a conversation's segments; `open_answer`: and then the header of an answer.

        Raises:
            BadSample: the template refuses this conversation.
            UserError: the folder has no usable chat template.
        """
        turns, where = conversation.turns, conversation.where
        # A turn in which nothing is said is one empty text.
        parts = [part for turn in turns for part in turn.parts or (Text(""),)]
        shape = tuple((turn.role, max(len(turn.parts), 1)) for turn in turns)
        try:
            pieces = _skeleton(_source(tokenizer), shape, open_answer)
        except _RefusedError as error:
            message = f"{where}: the chat template of {tokenizer.path} {error}"
            raise BadSample("wrong_conversation", message) from None
        for piece in pieces:
            if isinstance(piece, _Slot):
                yield from self._part(parts[piece.part], piece, where)
            else:
                yield piece

    def _part(self, part: Text | Image, slot: _Slot, where: str) -> Iterator[Segment]:
        if isinstance(part, Text):
            text = part.text.lstrip() if slot.strip[0] else part.text
            text = text.rstrip() if slot.strip[1] else text
            yield Words(text, slot.is_answer, apart=slot.opens)
            return
        if slot.is_answer and not self.image_tokens:
            raise BadSample("wrong_conversation", unannounced(where, self.name))
        if self.image_tokens:
            yield Control(IMAGE_START, slot.is_answer)
        yield ImageSlot(part.media, slot.is_answer)
        if self.image_tokens:
            yield Control(IMAGE_END, slot.is_answer)


class _RefusedError(Exception):
    """The template does not write this shape of conversation; says why."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a template's output depends on besides the conversation.

    Attributes:
        text: the jinja source.
        variables: `bos_token` and the like, by name.
        controls: spellings of control tokens.
    """

    text: str
    variables: tuple[tuple[str, str], ...]
    controls: tuple[str, ...]


def _source(tokenizer: Tokenizer) -> _Source:
    """Returns the source of a folder.

    Raises:
        UserError: there is none, or it is no jinja.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.path}: the folder has no chat template (chat_template.jinja, or "
            "chat_template in tokenizer_config.json); set tokenizer.template to a name"
        )
    variables = tuple((role, name) for role, name in tokenizer.roles.items() if name)
    source = _Source(tokenizer.chat_template, variables, tuple(sorted(tokenizer.names)))
    try:
        _compile(source.text)
    except Exception as error:  # TemplateSyntaxError and what a broken file leads to
        raise UserError(f"{tokenizer.path}: its chat template is no jinja, {error}") from None
    return source


@functools.lru_cache(maxsize=1024)
def _skeleton(source: _Source, shape: Shape, open_answer: bool) -> tuple[_Piece, ...]:
    """Returns what the template writes around the parts of conversations of a shape."""
    literals, marks = _cut(_render(source, shape, open_answer))
    ends = list(itertools.accumulate(count for _, count in shape))
    if sorted(marks) != list(range(ends[-1])):
        raise _RefusedError("leaves out a turn of this conversation, or writes one twice")
    turn_of = [turn for turn, (_, count) in enumerate(shape) for _ in range(count)]
    pieces: list[_Piece] = []
    closing = ""  # what ends the answer before the literal
    for number, part in enumerate(marks):
        turn = turn_of[part]
        is_answer = shape[turn][0] == "assistant"
        is_first, is_last = part == 0 or turn_of[part - 1] != turn, part + 1 == ends[turn]
        before, after = literals[number : number + 2]
        strip = (is_first and not before.endswith(_EDGE), is_last and not after.startswith(_EDGE))
        if is_first:
            before = before.removesuffix(_EDGE)
        if is_last:
            literals[number + 1] = after.removeprefix(_EDGE)
        opens = is_answer and is_first
        opening = _opening(source, shape[:turn], before, closing) if opens else None
        written = _literal(source, before, closing, opening)
        pieces += written
        has_lead = bool(written) and written[-1].supervised
        pieces.append(_Slot(part, strip, is_answer, opens and not has_lead))
        closing = _closing(source, shape[: turn + 1]) if is_answer and is_last else ""
    return (*pieces, *_literal(source, literals[-1], closing, None))


def _literal(source: _Source, text: str, closing: str, opening: str | None) -> list[_Piece]:
    """Returns a template's own text: end of an answer, what follows, and the lead of the next.

    Args:
        source: of the template.
        text: all of it.
        closing: what of it ends the answer before.
        opening: what of it the model goes on from; None: no answer follows.
    """
    if not text.startswith(closing):
        raise _RefusedError(f"ends an answer by {closing!r} or not, depending on what follows")
    rest, lead = text[len(closing) :], ""
    if opening is not None:
        rest, lead = rest[: len(opening)], rest[len(opening) :]
    return [
        *_split(source, closing, supervised=True),
        *_split(source, rest),
        *_split(source, lead, supervised=True, apart=True),
    ]


def _opening(source: _Source, shape: Shape, before: str, closing: str) -> str:
    """Returns what of the text before an answer is written for the model to go on from."""
    opening = _cut(_render(source, shape, True))[0][-1].removeprefix(_EDGE)
    if not before.startswith(closing + opening):
        raise _RefusedError(
            f"opens an answer by {opening!r} when the model is to speak, but one that is there by "
            f"{before!r}"
        )
    return opening


def _closing(source: _Source, shape: Shape) -> str:
    """Returns what ends the last turn: up to the first control token, if there is one."""
    text = _cut(_render(source, shape, False))[0][-1].removeprefix(_EDGE)
    closing = ""
    for piece in _split(source, text):
        if isinstance(piece, Control):
            return closing + piece.name
        closing += piece.text
    return closing


def _split(
    source: _Source, text: str, supervised: bool = False, apart: bool = False
) -> list[Control | Words]:
    return list(markup_segments(text, source.controls, supervised, apart))


def _cut(rendered: str) -> tuple[list[str], list[int]]:
    """Returns the template's own texts, and which part stands after each but the last."""
    return _MARKS.split(rendered), [ord(mark) - _FIRST for mark in _MARKS.findall(rendered)]


def _render(source: _Source, shape: Shape, open_answer: bool) -> str:
    """Runs the template over marks."""
    messages, first = [], _FIRST
    for role, count in shape:
        marks = "".join(map(chr, range(first, first + count)))
        messages.append({"role": role, "content": f"{_EDGE}{marks}{_EDGE}"})
        first += count
    try:
        return _compile(source.text).render(
            messages=messages, add_generation_prompt=open_answer, **dict(source.variables)
        )
    except Exception as error:  # whatever a stranger's template comes upon
        raise _RefusedError(f"refuses this conversation: {error}") from None


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """Returns the template, in the sandbox and with the settings of `transformers`.

    There is no `strftime_now`: what a conversation is written as must not depend on the day.
    """
    import jinja2
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # These tags of `transformers` only mark answers, which are known here.
    source = re.sub(r"{%(-?)\s*generation\s*(-?)%}", r"{%\1 if true \2%}", source)
    source = re.sub(r"{%(-?)\s*endgeneration\s*(-?)%}", r"{%\1 endif \2%}", source)
    return environment.from_string(source)
