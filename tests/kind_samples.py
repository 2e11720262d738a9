"""Makes samples of records for the tests of kinds."""

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import Conversation, Text, Turn
from metamorph_jax.data.kinds import make_conversation
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.video import VideoInfo


def make(
    kind: str,
    fields: dict | Record,
    *,
    key: str = "0/data/1",
    info: VideoInfo | None = None,
    max_images: int | None = None,
    **source,
) -> Conversation:
    """Returns what a kind makes of a record's fields; `info` is what is known of its video."""
    record = fields if isinstance(fields, Record) else parse_record(fields, "data.jsonl", 7)

    def video_info(path: str) -> VideoInfo:
        assert info is not None, f"nothing should ask for {path}"
        return info

    config = SourceConfig(path="data.jsonl", kind=kind, **source)
    return make_conversation(record, config, key, video_info, max_images)


def turns(*texts: str) -> list[dict]:
    """Returns LLaVA's `conversations` of a question, its answer, and so on."""
    return [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)
    ]


def layout(conversation: Conversation) -> list[list]:
    """Returns the turns: texts as they are, images as (medium,)."""
    return [[_plain(part) for part in turn.parts] for turn in conversation.turns]


def _plain(part):
    return part.text if isinstance(part, Text) else (part.media,)


def words(turn: Turn) -> str:
    """Returns the texts of a turn, joined."""
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


def media(turn: Turn) -> list:
    """Returns what the images of a turn show."""
    return [part.media for part in turn.parts if not isinstance(part, Text)]
