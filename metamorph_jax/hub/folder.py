"""What a Hugging Face folder is: read from its config.json and its tensors' names, never its own.

`importing.py` takes parts out of such folders; `inspecting.py` says what one holds.
"""

import dataclasses
from pathlib import Path
from typing import Any

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.hub.layouts import LAYOUTS, OwnName, find_layout, is_dead, to_own
from metamorph_jax.hub.tensor_files import TensorFolder, read_json

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class HubFolder:
    """A folder of weights, opened but not read.

    Attributes:
        path: of the folder.
        config: its config.json.
        tensors: its tensors by name.
        layout: how they are called, see `layouts.py`.
        parts: by part, own name -> name in the folder.
        dead: names of leftovers, which are not read.
    """

    path: Path
    config: dict[str, Any]
    tensors: TensorFolder
    layout: str
    parts: dict[str, dict[str, str]]
    dead: tuple[str, ...]


def open_folder(path: str | Path) -> HubFolder:
    """Returns a folder of weights with each tensor assigned to a part.

    Raises:
        UserError: it is no model's folder, a file is damaged, or its tensors have names of no known
            family.
    """
    folder = Path(path)
    tensors = TensorFolder(folder)
    config = read_json(folder / CONFIG_FILE)
    names = sorted(tensors.specs)
    layout = find_layout(names)
    if layout is None:
        raise UserError(_unknown_names(folder, config, names))
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        own = to_own(layout, name)
        if own is not None and not is_dead(name):
            _add(parts, own, name, folder)
    dead = tuple(name for name in names if is_dead(name))
    return HubFolder(folder, config, tensors, layout, parts, dead)


def _add(parts: dict[str, dict[str, str]], own: OwnName, name: str, folder: Path) -> None:
    """Notes one tensor of a part."""
    known = parts.setdefault(own.part, {})
    if own.name in known:
        raise UserError(f"{folder}: {known[own.name]} and {name} are two names of one tensor")
    known[own.name] = name


def _unknown_names(folder: Path, config: dict[str, Any], names: list[str]) -> str:
    """Returns what to say of tensors that no layout knows."""
    known = {prefix.theirs for layout in LAYOUTS.values() for prefix in layout if prefix.theirs}
    unknown = [name for name in names if not name.startswith(tuple(known))]
    examples = ", ".join((unknown or names)[:4])
    near = nearest(unknown[0], known, 1) if unknown else []
    hint = f"; nearest known beginning: {near[0]}" if near else ""
    return (
        f"{folder}: tensors of no known family, such as {examples}{hint}. Its config.json says "
        f"model_type {config.get('model_type')!r}; docs/weights.md lists what can be imported"
    )
