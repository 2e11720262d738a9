"""One record of a data file: its fields, checked, whatever format they come from.

A record remembers its file and line, so that every later complaint can name them. `sources/` reads
the files; what the texts mean is decided in `conversation.py`, the next file to read.
"""

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from typing import Any

from metamorph_jax.data.faults import BadSample, Reason
from metamorph_jax.data.media import ImageBytes

_EXPECTED = (
    'expected {"image": "a.png" (or a list, or no image), "conversations": '
    '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'
)
_USED = ("conversations", "messages", "image", "images", "video", "caption")


@dataclasses.dataclass(frozen=True)
class RawTurn:
    """One entry of `conversations`, untouched.

    Attributes:
        speaker: the file's word, such as "human".
        text: the file's text, in which "<image>" may stand for an image.
        pieces: of a turn that the file already cuts up (`content` lists of `messages`): texts,
            which are only texts, and None for each image; then `text` is not used.
    """

    speaker: str
    text: str
    pieces: tuple[str | None, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """One validated record.

    Attributes:
        images: paths as written in the file, or bytes, in order.
        turns: of the conversation; none only if the kind of the source makes them.
        extra: every other field of the record.
        file: the file it came from.
        line: 1-based line on which it starts (row, for formats without lines).
        video: path of a video file or of a folder of frames; or the frames themselves.
        caption: what the image shows, of formats that pair images with captions.
    """

    images: tuple[str | ImageBytes, ...]
    turns: tuple[RawTurn, ...]
    extra: Mapping[str, Any]
    file: str
    line: int
    video: str | tuple[str | ImageBytes, ...] | None = None
    caption: str | None = None

    @property
    def where(self) -> str:
        """FILE:LINE, the beginning of every message about this record."""
        return f"{self.file}:{self.line}"


def parse_record(fields: Any, file: str, line: int) -> Record:
    """Returns the record that decoded fields describe.

    Args:
        fields: `conversations` or `messages`, `image` or `images`, `video`, `caption`: each may be
            absent, but not all. Every other field is kept as it is.
        file: that the fields come from.
        line: on which they start.

    Raises:
        BadSample: a value has the wrong type, or nothing is there; names FILE:LINE and the key.
    """
    where = f"{file}:{line}"
    if not isinstance(fields, dict):
        raise _bad(where, f"the record is {_kind(fields)}; {_EXPECTED}")
    turns, inline_images = _parse_turns(fields, where)
    images = _parse_images(fields, where)
    if images and inline_images:
        raise _bad(where, "images stand both in the messages and beside them; keep one")
    record = Record(
        images=images or inline_images,
        turns=turns,
        extra={key: value for key, value in fields.items() if key not in _USED},
        file=file,
        line=line,
        video=_parse_video(fields.get("video"), where),
        caption=_parse_caption(fields.get("caption"), where),
    )
    if not (turns or record.images or record.video or record.caption):
        found = ", ".join(map(repr, fields)) or "nothing"
        raise _bad(where, f"key 'conversations' is missing (found {found}); {_EXPECTED}")
    return record


def _bad(where: str, message: str, reason: Reason = "malformed_record") -> BadSample:
    return BadSample(reason, f"{where}: {message}")


def _is_absent(value: Any) -> bool:
    """Whether a medium is absent, in one of the spellings that tables are exported with.

    **Source:** Cambrian's loader, which takes an empty string, None, "none" and "nan" for that.
    """
    if isinstance(value, str):
        return value.strip().lower() in ("", "none", "nan")
    return value is None or value != value  # NaN is not equal to itself


def _one_of(fields: dict[str, Any], keys: tuple[str, str], where: str) -> tuple[str, Any]:
    """Returns (key, value) of the one key of two that is there; the first and None if none is."""
    present = [key for key in keys if not _is_absent(fields.get(key))]
    if len(present) > 1:
        raise _bad(where, f"{keys[0]!r} and {keys[1]!r} are both there; keep one")
    key = present[0] if present else keys[0]
    return key, fields[key] if present else None


def _parse_images(fields: dict[str, Any], where: str) -> tuple[str | ImageBytes, ...]:
    key, value = _one_of(fields, ("image", "images"), where)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(
        _parse_image(item, f"{key}[{index}]" if isinstance(value, list) else key, where)
        for index, item in enumerate(values)
    )


def _parse_image(value: Any, name: str, where: str) -> str | ImageBytes:
    """Returns a path, or the bytes of an encoded image.

    Args:
        value: a path, bytes, {"bytes", "path"} as Hugging Face keeps images, or {"bytes_b64"}.
        name: of the value in the record.
        where: FILE:LINE.
    """
    if isinstance(value, ImageBytes):
        name, value = value.name, value.data
    elif isinstance(value, dict) and (value.keys() & {"bytes", "path", "bytes_b64"}):
        name = value["path"] if isinstance(value.get("path"), str) and value["path"] else name
        if value.get("bytes_b64") is not None:
            value = _from_base64(value["bytes_b64"], name, where)
        else:
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        if not len(value):
            raise _bad(where, f"{name!r} holds an image of no bytes", "unreadable_media")
        return ImageBytes(bytes(value), name)
    if not isinstance(value, str) or not value:
        raise _bad(
            where,
            f"{name!r} holds {_kind(value)}; expected a path, bytes, or a list of these",
        )
    return _checked_text(value, f"{name!r}", where)


def _from_base64(value: Any, name: str, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _bad(where, f"'bytes_b64' of {name!r} is not base64") from None


def _parse_video(value: Any, where: str) -> str | tuple[str | ImageBytes, ...] | None:
    if _is_absent(value):
        return None
    if isinstance(value, list) and value:
        return tuple(
            _parse_image(item, f"video[{index}]", where) for index, item in enumerate(value)
        )
    if not isinstance(value, str):
        raise _bad(where, f"'video' is {_kind(value)}; expected a path, or a list of frames")
    return _checked_text(value, "'video'", where)


def _parse_caption(value: Any, where: str) -> str | None:
    if value is None or value != value:
        return None
    if not isinstance(value, str):
        raise _bad(where, f"'caption' is {_kind(value)}; expected a string")
    return _checked_text(value, "'caption'", where)


def _parse_turns(
    fields: dict[str, Any], where: str
) -> tuple[tuple[RawTurn, ...], tuple[str | ImageBytes, ...]]:
    """Returns the turns, and the images that stand in the turns themselves."""
    key, turns = _one_of(fields, ("conversations", "messages"), where)
    if turns is None:
        return (), ()
    if not isinstance(turns, list) or not turns:
        raise _bad(where, f"{key!r} is {_kind(turns)}; {_EXPECTED}")
    images: list[str | ImageBytes] = []
    parsed = [_parse_turn(turn, f"{key}[{n}]", where, images) for n, turn in enumerate(turns)]
    return tuple(parsed), tuple(images)


def _parse_turn(turn: Any, place: str, where: str, images: list[str | ImageBytes]) -> RawTurn:
    if not isinstance(turn, dict):
        raise _bad(where, f"{place} is {_kind(turn)}; {_EXPECTED}")
    # Tables have all columns in all rows, so a key with nothing in it is no key.
    is_chat = turn.get("from") is None and turn.get("role") is not None
    speaker_key, text_key = ("role", "content") if is_chat else ("from", "value")
    for key in (speaker_key, text_key):
        if key not in turn:
            raise _bad(where, f"{place} has no {key!r}; {_EXPECTED}")
    speaker, content = turn[speaker_key], turn[text_key]
    if not isinstance(speaker, str):
        raise _bad(where, f"{place}[{speaker_key!r}] is {_kind(speaker)}; expected a string")
    _checked_text(speaker, f"{place}[{speaker_key!r}]", where)
    place = f"{place}[{text_key!r}]"
    if is_chat and isinstance(content, list):
        pieces = [
            _parse_piece(piece, f"{place}[{n}]", where, images) for n, piece in enumerate(content)
        ]
        return RawTurn(speaker, "", tuple(pieces))
    if not isinstance(content, str):
        raise _bad(where, f"{place} is {_kind(content)}; expected a string")
    return RawTurn(speaker, _checked_text(content, place, where))


def _parse_piece(piece: Any, place: str, where: str, images: list[str | ImageBytes]) -> str | None:
    """Returns a text, or None for an image; one that stands in the piece goes to `images`."""
    kind = piece.get("type") if isinstance(piece, dict) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        return _checked_text(piece["text"], place, where)
    if kind == "image":
        if not _is_absent(piece.get("image")):
            images.append(_parse_image(piece["image"], place, where))
        return None
    found = _kind(piece) if kind is None else f"of type {kind!r}"
    raise _bad(
        where,
        f'{place} is {found}; expected {{"type": "text", "text": "..."}} or {{"type": "image"}}',
    )


def _checked_text(text: str, place: str, where: str) -> str:
    """Returns `text`; JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise _bad(
            where, f"{place} holds {half}, half of a surrogate pair; write the whole one"
        ) from None
    return text


def _kind(value: Any) -> str:
    """Returns "null", "a number", ... for messages."""
    if value is None:
        return "null"
    if isinstance(value, (list, dict, str)) and not value:
        return f"an empty {'string' if isinstance(value, str) else type(value).__name__}"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"of type {type(value).__name__}")
