"""Reads LLaVA-format files: `.json` (one list) and `.jsonl` (one object a line).

A record is checked as it is read and remembers its file and line, so that every later complaint can
name them. What its texts mean is decided in `conversation.py`, the next file to read.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metamorph_jax.data.media import ImageBytes
from metamorph_jax.errors import UserError

MAX_RECORD_BYTES = 16 * 2**20
_EXPECTED = (
    'expected {"image": "a.png" (or a list, or no image), "conversations": '
    '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'
)


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
    """Returns the record that decoded JSON describes.

    Raises:
        UserError: a key is missing or a value has the wrong type; names FILE:LINE and the key.
    """
    where = f"{file}:{line}"
    if not isinstance(fields, dict):
        raise UserError(f"{where}: the record is {_kind(fields)}; {_EXPECTED}")
    if "conversations" not in fields:
        found = ", ".join(map(repr, fields)) or "nothing"
        raise UserError(f"{where}: key 'conversations' is missing (found {found}); {_EXPECTED}")
    turns = fields["conversations"]
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: 'conversations' is {_kind(turns)}; {_EXPECTED}")
    extra = {key: value for key, value in fields.items() if key not in ("conversations", "image")}
    return Record(
        images=_parse_images(fields.get("image"), where),
        turns=tuple(_parse_turn(turn, index, where) for index, turn in enumerate(turns)),
        extra=extra,
        file=file,
        line=line,
    )


def _parse_images(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise UserError(
                f"{where}: 'image' holds {_kind(path)}; expected a path or a list of paths"
            )
        _check_unicode(path, f"{where}: 'image'")
    return tuple(paths)


def _parse_turn(turn: Any, index: int, where: str) -> RawTurn:
    place = f"{where}: conversations[{index}]"
    if not isinstance(turn, dict):
        raise UserError(f"{place} is {_kind(turn)}; {_EXPECTED}")
    for key in ("from", "value"):
        if key not in turn:
            raise UserError(f"{place} has no {key!r}; {_EXPECTED}")
        if not isinstance(turn[key], str):
            raise UserError(f"{place}[{key!r}] is {_kind(turn[key])}; expected a string")
        _check_unicode(turn[key], f"{place}[{key!r}]")
    return RawTurn(turn["from"], turn["value"])


def _check_unicode(text: str, place: str) -> None:
    """JSON can spell half a surrogate pair, which no tokenizer or file system takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} holds {text[error.start]!r}, half of a surrogate pair; write the whole one"
        ) from None


def _kind(value: Any) -> str:
    """Returns "null", "a number", ... for messages."""
    if value is None:
        return "null"
    if isinstance(value, (list, dict, str)) and not value:
        return f"an empty {'string' if isinstance(value, str) else type(value).__name__}"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "an object"}
    return names[type(value)]


def _decode(text: str, file: str, line: int) -> Any:
    """Returns decoded JSON; `line` is where `text` starts."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}:{line + error.lineno - 1}: malformed JSON, {error.msg} at column "
            f"{error.colno}; a .jsonl file holds one complete object a line, a .json file one list"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}:{line}: JSON that cannot be read, {error}") from None


class RecordFile:
    """Random access to the records of one file, in file order.

    A `.jsonl` file is indexed by byte offsets and read line by line, a `.json` list is decoded.

    Raises:
        UserError: the file is missing, empty, of another format or not UTF-8.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not Path(path).is_file():
            raise UserError(f"{self.path}: no such data file; check `path` of the data source")
        if self.path.endswith(".jsonl"):
            self._decoded, self._lines = None, _index_lines(self.path)
        elif self.path.endswith(".json"):
            self._decoded = _decode_list(self.path)
            self._lines = []
        else:
            raise UserError(f"{self.path}: a data file ends in .json (one list) or .jsonl")
        if not len(self):
            raise UserError(f"{self.path}: the file holds no records")

    def __len__(self) -> int:
        return len(self._lines if self._decoded is None else self._decoded)

    def __getitem__(self, index: int) -> Record:
        if self._decoded is not None:
            line, fields = self._decoded[index]
            return parse_record(fields, self.path, line)
        with open(self.path, "rb") as file:
            return self._read(file, index)

    def __iter__(self) -> Iterator[Record]:
        if self._decoded is not None:
            for line, fields in self._decoded:
                yield parse_record(fields, self.path, line)
            return
        with open(self.path, "rb") as file:
            for index in range(len(self._lines)):
                yield self._read(file, index)

    def _read(self, file: Any, index: int) -> Record:
        line, offset = self._lines[index]
        file.seek(offset)
        text = _utf8(file.readline(), self.path, line)
        return parse_record(_decode(text, self.path, line), self.path, line)


def _index_lines(path: str) -> list[tuple[int, int]]:
    """Returns (line number, byte offset) of every line that is not blank."""
    index, offset = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if len(line) > MAX_RECORD_BYTES:
                raise UserError(
                    f"{path}:{number}: the line has {len(line)} bytes; at most "
                    f"{MAX_RECORD_BYTES} are read as one record (is this a .json list?)"
                )
            if line.strip():
                index.append((number, offset))
            offset += len(line)
    return index


def _decode_list(path: str) -> list[tuple[int, Any]]:
    """Returns (line number, decoded element) of every element of a JSON list."""
    text = _utf8(Path(path).read_bytes(), path, 1)
    _decode(text, path, 1)  # reports malformed JSON with its line; below only places are found
    position = len(text) - len(text.lstrip())
    if text[position] != "[":
        raise UserError(f"{path}:1: a .json file holds one list of records; use .jsonl for lines")
    elements, line, counted = [], 1, 0
    decoder = json.JSONDecoder()
    position = _skip(text, position + 1)
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        value, end = decoder.raw_decode(text, position)
        elements.append((line, value))
        position = _skip(text, end)
    return elements


def _skip(text: str, position: int) -> int:
    """Returns the position of the next element or of the closing bracket."""
    while text[position] in " \t\r\n,":
        position += 1
    return position


def _utf8(data: bytes, path: str, line: int) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = line + data.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}:{bad_line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None
