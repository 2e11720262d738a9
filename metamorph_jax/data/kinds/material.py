"""What a kind makes its sample of, and what all kinds need to do so."""

import dataclasses
from collections.abc import Callable, Iterable

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.faults import BadSample, Reason
from metamorph_jax.data.kinds.draw import Draw
from metamorph_jax.data.records import Record
from metamorph_jax.data.video import VideoInfo


@dataclasses.dataclass(frozen=True)
class Material:
    """All that a kind may look at; the arguments of `make_conversation`.

    Attributes:
        draw: chance, as a function of the sample's key.
        video_info: path as written in the record -> length and rate.
        max_images: images that a row holds; None: no limit.
    """

    record: Record
    source: SourceConfig
    draw: Draw
    video_info: Callable[[str], VideoInfo]
    max_images: int | None = None

    def bad(self, reason: Reason, message: str) -> BadSample:
        """Returns the complaint about the record, to be raised."""
        return BadSample(reason, f"{self.record.where}: {message}")

    def caption(self) -> str:
        """Returns the caption of a record without turns.

        Raises:
            BadSample: it has none, or not exactly one image.
        """
        record = self.record
        if record.caption is None:
            raise self.bad(
                "malformed_record",
                f"the record has neither 'conversations' nor a caption, which the kind "
                f"{self.source.kind!r} is made of",
            )
        if len(record.images) != 1:
            raise self.bad(
                "tag_mismatch",
                f"the record pairs a caption with {len(record.images)} images; expected one",
            )
        if not record.caption.strip():
            raise self.bad("wrong_conversation", "the caption is empty; say what the image shows")
        return record.caption.strip()

    def dialogue(self, *turns: Iterable[Text | Image]) -> Conversation:
        """Returns the conversation of a question, its answer, ...; empty texts are left out."""
        roles = ("user", "assistant")
        made = [
            Turn(roles[index % 2], tuple(part for part in turn if part != Text("")))
            for index, turn in enumerate(turns)
        ]
        return Conversation(tuple(made), self.record.where)


def images_in(turn: Turn) -> int:
    """Returns how many images a turn shows."""
    return sum(isinstance(part, Image) for part in turn.parts)
