"""Questions about a video: its frames, then the question.

The one place where the characters "<video>" mean something, once per record.
"""

import dataclasses
from collections.abc import Iterable

from metamorph_jax.data.conversation import IMAGE_TAG, ROLES, Conversation, read_conversation
from metamorph_jax.data.kinds.clip import MAX_FRAMES, Clip, names_video, read_clip
from metamorph_jax.data.kinds.material import Material
from metamorph_jax.data.media import Media
from metamorph_jax.data.records import RawTurn

VIDEO_TAG = "<video>"


def video_qa(material: Material) -> Conversation:
    """Returns the turns with the video's frames where its tag stands, or before the first question.

    One frame a second (of a slower video, each frame), at most `MAX_FRAMES` and what is left of
    `max_images`; more are thinned evenly. The tag is one "<video>", or one "<image>" if the record
    has no other images.

    Raises:
        BadSample: there is no video or no conversation, there are several tags for it, its tag is
            not in a question, or other tags and images differ in number.
    """
    record = material.record
    if names_video(record.images) and record.video is None:
        record = dataclasses.replace(record, images=(), video=record.images[0])
    if not record.turns:
        raise material.bad(
            "malformed_record", "the record has no 'conversations'; 'video_qa' needs a question"
        )
    place = _place(material, record.turns, VIDEO_TAG)
    tag: str | None = VIDEO_TAG
    if place is None and not record.images:
        place, tag = _place(material, record.turns, IMAGE_TAG), IMAGE_TAG
    if place is None:
        place, tag = _first_question(material, record.turns), None
    frames = sample_frames(read_clip(material), _room(material, len(record.images)))
    has_images = bool(record.images)
    head, rest = _around(record.turns[place], tag, has_images)
    cut = [_cut(turn, has_images) for turn in record.turns]
    cut[place] = [*head, *[None] * len(frames), *rest]
    tags = sum(map(_places, cut)) - len(frames)
    if tags != len(record.images):
        raise material.bad(
            "tag_mismatch",
            f"the conversation has {tags} {IMAGE_TAG} tag(s) beside the video's, but the record "
            f"lists {len(record.images)} image(s); list one for each tag",
        )
    before = sum(map(_places, cut[:place])) + _places(head)
    images = (*record.images[:before], *frames, *record.images[before:])
    turns = tuple(
        dataclasses.replace(turn, pieces=tuple(pieces))
        for turn, pieces in zip(record.turns, cut, strict=True)
    )
    return read_conversation(dataclasses.replace(record, images=images, turns=turns))


def sample_frames(clip: Clip, limit: int) -> list[Media]:
    """Returns the frames shown at seconds 0, 1, 2, ..., evenly thinned to at most `limit`."""
    step = max(1.0, 1 / clip.fps)  # no frame twice
    count = 1
    if clip.duration_secs > step:
        count = int((clip.duration_secs - 1e-6) / step) + 1
    return [clip.frame(index * step) for index in thin(count, limit)]


def thin(count: int, limit: int) -> Iterable[int]:
    """Returns at most `limit` of 0 .. count - 1, evenly spread from the first to the last."""
    if count <= limit:
        return range(count)
    if limit == 1:
        return [(count - 1) // 2]
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def _room(material: Material, others: int) -> int:
    if material.max_images is None:
        return MAX_FRAMES
    room = min(MAX_FRAMES, material.max_images - others)
    if room < 1:
        raise material.bad(
            "over_long",
            f"a row holds {material.max_images} images, which leaves none for the video's frames; "
            "raise max_images",
        )
    return room


def _place(material: Material, turns: tuple[RawTurn, ...], tag: str) -> int | None:
    """Returns the turn that holds the video's tag, None if none does."""
    counts = [_count(turn, tag) for turn in turns]
    if sum(counts) > 1:
        raise material.bad(
            "tag_mismatch",
            f"the conversation has {sum(counts)} {tag} tags for one video; leave one of them",
        )
    if not sum(counts):
        return None
    place = counts.index(1)
    if ROLES.get(turns[place].speaker) == "assistant":
        raise material.bad(
            "tag_mismatch",
            f"conversations[{place}] is an answer that holds the video's tag {tag}; videos are "
            "shown in questions; move it there",
        )
    return place


def _first_question(material: Material, turns: tuple[RawTurn, ...]) -> int:
    for index, turn in enumerate(turns):
        if ROLES.get(turn.speaker) == "user":
            return index
    raise material.bad("wrong_conversation", "no turn is by the user; add one from 'human'")


def _count(turn: RawTurn, tag: str) -> int:
    if turn.pieces is None:
        return turn.text.count(tag)
    return turn.pieces.count(None) if tag == IMAGE_TAG else 0


def _cut(turn: RawTurn, has_images: bool) -> list[str | None]:
    """Returns the texts of a turn, and None where an image goes; without images, tags are text."""
    if turn.pieces is not None:
        return list(turn.pieces)
    return _cut_text(turn.text) if has_images else [turn.text]


def _cut_text(text: str) -> list[str | None]:
    first, *rest = text.split(IMAGE_TAG)
    return [first, *(piece for after in rest for piece in (None, after))]


def _around(
    turn: RawTurn, tag: str | None, has_images: bool
) -> tuple[list[str | None], list[str | None]]:
    """Returns what stands before and after the video; without a tag, it stands at the head."""
    if tag is None:
        return [], _cut(turn, has_images)
    if turn.pieces is not None:
        place = turn.pieces.index(None)
        return list(turn.pieces[:place]), list(turn.pieces[place + 1 :])
    head, rest = turn.text.split(tag, 1)
    return (_cut_text(head), _cut_text(rest)) if has_images else ([head], [rest])


def _places(pieces: list[str | None]) -> int:
    return pieces.count(None)
