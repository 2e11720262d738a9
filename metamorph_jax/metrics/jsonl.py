"""JSON lines that a kill may cut off at any byte: read what is whole, append after it.

Writers append whole lines; so only the last line of a file can be broken.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (text, object) of the whole lines of a file; nothing if there is no file."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict):
            yield line, values


def drop_partial_line(path: Path) -> None:
    """Cuts off a last line without newline, so that the next line does not grow out of it."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            file.truncate(complete)
