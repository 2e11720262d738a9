"""A chat format as data, and the segments that it makes of a conversation."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.templates.segments import (
    BEGIN_IF_ADDED,
    END,
    IMAGE_END,
    IMAGE_START,
    Control,
    ImageSlot,
    Segment,
    Words,
    markup_segments,
)
from metamorph_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """How turns are written down.

    Strings hold text and control tokens, the latter as listed in `controls`.

    Attributes:
        name: in recipes.
        begin: opens the sequence.
        system: around the system text; None: there is no system turn.
        system_text: of conversations without a system turn of their own; None: they have none.
        system_in_question: the system text stands inside the first turn by the user.
        user: around a turn by the user.
        between: after an answer, before the next turn by the user.
        answer: what the model goes on from; what stands in front of the answer's words; what ends
            it. The last two are supervised.
        end: closes the sequence.
        controls: control tokens in these strings.
        stop: control tokens that end an answer; the first is the template's own.
        strip: remove white space around each turn.
        questions: `as_written`; `drop`: of a turn by the user only its images are written.
        image_place: in turns by the user with one image, it stands as written, or `front`: on a
            line of its own before the text, as LLaVA 1.5 has it, or `front_if_behind`: only if it
            is not in front already, as LLaVA-NeXT has it.
        image_tokens: images stand between an image-start and an image-end token. Without the two,
            nothing announces an image, and answers cannot hold one.
        supervised_header: the answer's header is supervised, too.
        always_supervised: tokens that are supervised wherever they stand.
        signal: text after an answer by which the next turn opens and which is supervised, for
            templates without a token that ends turns.
    """

    name: str
    begin: str = BEGIN_IF_ADDED
    system: tuple[str, str] | None = None
    system_text: str | None = None
    system_in_question: bool = False
    user: tuple[str, str]
    between: str = ""
    answer: tuple[str, str, str]
    end: str = ""
    controls: tuple[str, ...] = ()
    stop: tuple[str, ...] = (END,)
    strip: bool = False
    questions: Literal["as_written", "drop"] = "as_written"
    image_place: Literal["as_written", "front", "front_if_behind"] = "as_written"
    image_tokens: bool = False
    supervised_header: bool = False
    always_supervised: tuple[str, ...] = ()
    signal: str = ""

    def stop_names(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Returns the control tokens that end an answer, the template's own first."""
        return self.stop

    def segments(self, conversation: Conversation, open_answer: bool) -> Iterator[Segment]:
        """Yields a conversation's segments; `open_answer`: and then the header of an answer.

        Raises:
            BadSample: the template cannot write this conversation.
        """
        turns, where = conversation.turns, conversation.where
        own = turns[0] if turns[0].role == "system" else None
        dialogue = turns if own is None else turns[1:]
        if self.questions == "drop":
            self._check_caption(dialogue, where)
        yield from self._markup(self.begin)
        if not self.system_in_question:
            yield from self._system(own, where)
        for number, turn in enumerate(dialogue):
            if turn.is_answer:
                yield from self._answer(turn, where)
                continue
            if number:
                yield from self._markup(self.between)
            follows = bool(self.signal) and number > 0
            yield from self._markup(self.signal, supervised=follows)
            yield from self._markup(self.user[0].removeprefix(self.signal))
            if number == 0 and self.system_in_question:
                yield from self._system(own, where)
            yield from self._parts(self._question(turn), supervised=False)
            yield from self._markup(self.user[1])
        if open_answer:
            yield from self._markup(self.answer[0])
        else:
            yield from self._markup(self.signal, supervised=True)
            yield from self._markup(self.end.removeprefix(self.signal))

    def _check_caption(self, dialogue: Sequence[Turn], where: str) -> None:
        has_image = any(isinstance(part, Image) for part in dialogue[0].parts)
        if len(dialogue) > 2 or not has_image:
            raise BadSample(
                "wrong_conversation",
                f"{where}: template {self.name} writes images and one caption; expected a turn by "
                "the user that has an image, and one answer",
            )

    def _markup(self, markup: str, supervised: bool = False, apart: bool = False):
        return markup_segments(markup, self.controls, supervised, apart)

    def _system(self, turn: Turn | None, where: str) -> list[Segment]:
        """Returns the segments of the system text, if there is one."""
        if turn is not None and self.system is None:
            raise BadSample(
                "wrong_conversation",
                f"{where}: template {self.name} has no system turn; remove the turn or set "
                "tokenizer.template to one that has it, such as 'llama3'",
            )
        if self.system is None or (turn is None and self.system_text is None):
            return []
        parts = (Text(self.system_text),) if turn is None else self._stripped(turn)
        before, after = self.system
        return [
            *self._markup(before),
            *self._parts(parts, supervised=False),
            *self._markup(after),
        ]

    def _answer(self, turn: Turn, where: str) -> Iterator[Segment]:
        header, lead, end = self.answer
        yield from self._markup(header, supervised=self.supervised_header)
        parts = self._stripped(turn)
        if not self.image_tokens and any(isinstance(part, Image) for part in parts):
            raise BadSample("wrong_conversation", unannounced(where, self.name))
        apart = True
        for segment in (*self._markup(lead, supervised=True), *self._parts(parts, supervised=True)):
            if isinstance(segment, Words) and apart:
                segment = dataclasses.replace(segment, apart=True)
            apart = False
            yield segment
        yield from self._markup(end, supervised=True)

    def _parts(self, parts: Sequence[Text | Image], supervised: bool) -> Iterator[Segment]:
        for part in parts:
            if isinstance(part, Text):
                yield Words(part.text, supervised)
                continue
            if self.image_tokens:
                yield Control(IMAGE_START, supervised)
            yield ImageSlot(part.media, supervised)
            if self.image_tokens:
                # In an answer this one is produced by the hidden state of the last visual token.
                yield Control(IMAGE_END, supervised)

    def _question(self, turn: Turn) -> tuple[Text | Image, ...]:
        """Returns the parts of a turn by the user as the template orders them."""
        parts = self._stripped(turn)
        images = [part for part in parts if isinstance(part, Image)]
        if self.questions == "drop":
            return tuple(images)
        in_front = bool(parts) and parts[0] == images[0] if images else False
        if len(images) != 1 or self.image_place == "as_written":
            return parts
        if self.image_place == "front_if_behind" and in_front:
            return parts
        words = "".join(part.text for part in parts if isinstance(part, Text)).strip()
        return (images[0], Text(f"\n{words}")) if words else (images[0],)

    def _stripped(self, turn: Turn) -> tuple[Text | Image, ...]:
        """Returns the parts, without white space around the whole turn if the template says so."""
        if not self.strip:
            return turn.parts
        parts = list(turn.parts)
        if parts and isinstance(parts[0], Text):
            parts[0] = Text(parts[0].text.lstrip())
        if parts and isinstance(parts[-1], Text):
            parts[-1] = Text(parts[-1].text.rstrip())
        return tuple(part for part in parts if part != Text(""))


def unannounced(where: str, name: str) -> str:
    """Returns the message for an image in an answer that nothing announces."""
    return (
        f"{where}: an answer holds an image, but template {name} has no token that announces one; "
        "set tokenizer.image_tokens to True (and add the two tokens to the tokenizer), or remove "
        "the image from the answer"
    )
