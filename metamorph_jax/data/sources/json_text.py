"""One JSON value from bytes that nobody vouches for.

Refused are what JSON forbids, keys that stand twice in an object (which of the two is meant?),
half surrogate pairs, which no tokenizer takes, and what would cost memory or stack without bound.
NaN is taken, because tables are often exported with it.
"""

import hashlib
import json
from typing import Any

from metamorph_jax.data.faults import BadSample

MAX_RECORD_BYTES = 16 * 2**20
MAX_DEPTH = 100


def decode_json(data: bytes, file: str, line: int) -> Any:
    """Returns the decoded value.

    Args:
        data: UTF-8, with or without a byte-order mark.
        file: that `data` comes from, for messages.
        line: on which `data` starts.

    Raises:
        BadSample: it cannot be read; names FILE:LINE.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise too_long(file, line)
    try:
        text = data.decode("utf-8-sig")
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH or "\\ud" in text or "\\uD" in text:
            _check_all(value)
    except UnicodeDecodeError as error:
        rest = error.object  # `data` without its mark
        line += rest.count(b"\n", 0, error.start)
        trouble = f"byte {rest[error.start]:#04x} is not UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        trouble = (
            f"malformed JSON, {error.msg} at column {error.colno}; a .jsonl file holds one "
            "complete object a line, a .json file one list"
        )
    except RecursionError:
        trouble = f"JSON that cannot be read, nested deeper than {MAX_DEPTH}; flatten the record"
    except ValueError as error:
        trouble = f"JSON that cannot be read, {error}; correct the record"
    else:
        return value
    digest = hashlib.sha256(data).hexdigest()
    raise BadSample("malformed_record", f"{file}:{line}: {trouble}", digest) from None


def too_long(file: str, line: int) -> BadSample:
    """Returns the complaint about a record that is not read because of its size."""
    return BadSample(
        "malformed_record",
        f"{file}:{line}: the record has more than {MAX_RECORD_BYTES} bytes, which is the most that "
        "is read; keep images in files of their own (and end the name of a list in .json)",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _check_all(value: Any) -> None:
    """Checks depth and strings of a value that may be hostile, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_unicode(item)
            elif isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return
        level = inner
    raise RecursionError


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(f"{half} is half of a surrogate pair; write the whole one") from None
