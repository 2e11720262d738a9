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
    tags = sum(map(_count_images, record.turns)) - (tag == IMAGE_TAG)
    if tags != len(record.images):
        raise material.bad(
            "tag_mismatch",
            f"the conversation has {tags} {IMAGE_TAG} tag(s) beside the video's, but the record "
            f"lists {len(record.images)} image(s); list one for each tag",
        )
    frames = sample_frames(read_clip(material), _room(material, len(record.images)))
    turns = list(record.turns)
    turns[place], before = _insert(turns[place], tag, len(frames))
    before += sum(map(_count_images, turns[:place]))
    images = (*record.images[:before], *frames, *record.images[before:])
    return read_conversation(dataclasses.replace(record, images=images, turns=tuple(turns)))


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
    counts = [
        _count_images(turn) if tag == IMAGE_TAG else _count_texts(turn, tag) for turn in turns
    ]
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


def _count_images(turn: RawTurn) -> int:
    if turn.pieces is not None:
        return turn.pieces.count(None)
    return turn.text.count(IMAGE_TAG)


def _count_texts(turn: RawTurn, tag: str) -> int:
    return 0 if turn.pieces is not None else turn.text.count(tag)


def _insert(turn: RawTurn, tag: str | None, count: int) -> tuple[RawTurn, int]:
    """Returns the turn with `count` images for the tag (at its head if None), and images before."""
    if turn.pieces is not None:
        place = turn.pieces.index(None) if tag else 0
        rest = turn.pieces[place + 1 :] if tag else turn.pieces
        return dataclasses.replace(turn, pieces=(*turn.pieces[:place], *[None] * count, *rest)), 0
    head, rest = turn.text.split(tag, 1) if tag else ("", turn.text)
    text = head + IMAGE_TAG * count + rest
    return dataclasses.replace(turn, text=text), head.count(IMAGE_TAG)
