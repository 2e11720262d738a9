"""Record -> Conversation: what is made of a record, by the kind of its source.

One file a kind; `wordings.py` holds the sentences. What is left to chance, such as a wording or a
span of frames, is a function of the sample's key, so that a record always yields the same sample.
Nothing is opened here but the length of videos, and no text is searched for tags: that is
`conversation.py`, and `video_qa.py` for "<video>". `templates.py` is next on the road.
"""

from collections.abc import Callable

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import Conversation, read_conversation
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.kinds.draw import Draw
from metamorph_jax.data.kinds.image_qa import image_qa
from metamorph_jax.data.kinds.image_to_image import image_to_image
from metamorph_jax.data.kinds.material import Material
from metamorph_jax.data.kinds.pure_video import pure_video
from metamorph_jax.data.kinds.response_format import add_response_format
from metamorph_jax.data.kinds.text_to_image import text_to_image
from metamorph_jax.data.kinds.video_qa import video_qa
from metamorph_jax.data.kinds.visual_thinking import visual_thinking
from metamorph_jax.data.records import Record
from metamorph_jax.data.video import VideoInfo

__all__ = ["KINDS", "make_conversation"]


def conversation(material: Material) -> Conversation:
    """Returns the turns of a record as they are."""
    if not material.record.turns:
        raise material.bad(
            "malformed_record",
            "the record has no 'conversations'; add them, or set the source's kind to one that is "
            "made of what the record holds",
        )
    return read_conversation(material.record)


KINDS: dict[str, Callable[[Material], Conversation]] = {
    "conversation": conversation,
    "image_qa": image_qa,
    "video_qa": video_qa,
    "text_to_image": text_to_image,
    "pure_video": pure_video,
    "visual_thinking": visual_thinking,
    "image_to_image": image_to_image,
}
_OF_VIDEOS = ("video_qa", "pure_video")


def make_conversation(
    record: Record,
    source: SourceConfig,
    key: str,
    video_info: Callable[[str], VideoInfo],
    max_images: int | None = None,
) -> Conversation:
    """Returns the sample that a source's kind makes of a record; always the same for the same key.

    Args:
        record: of that source.
        source: names the kind.
        key: of the sample, such as seed, source and number of the record.
        video_info: tells length and rate of a video, by its path as written in the record; raises
            BadSample if it cannot.
        max_images: images that a row holds; videos are thinned or cut to it. None: no limit.

    Raises:
        BadSample: the record does not hold what the kind needs; names FILE:LINE.
    """
    if record.video is not None and source.kind not in _OF_VIDEOS:
        raise BadSample(
            "wrong_conversation",
            f"{record.where}: the record has a video, which the kind {source.kind!r} does not "
            "show; set the source's kind to 'video_qa' or 'pure_video'",
        )
    made = KINDS[source.kind](Material(record, source, Draw(key), video_info, max_images))
    return add_response_format(made, source.response_format)
