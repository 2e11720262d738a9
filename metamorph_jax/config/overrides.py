"""Command-line overrides of leaves: `--config.model.llm.num_layers=4`.

List items are named by their `name` (`--config.stages.vpit.total_steps=10`) or index. A value is
read as a Python literal where possible (`1e-3`, `None`, `("connector",)`), else as a string.
"""

import ast
from collections.abc import MutableMapping, Sequence
from typing import Any

from metamorph_jax.errors import UserError, nearest

_PREFIX = "--config."


def split_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns ({dotted path: text}, all other arguments) of a command line."""
    overrides, rest = {}, []
    for argument in argv:
        if not argument.startswith(_PREFIX):
            rest.append(argument)
            continue
        path, separator, text = argument.removeprefix(_PREFIX).partition("=")
        if not separator:
            raise UserError(f"{argument}: an override has the form --config.path.to.key=value")
        overrides[path] = text
    return overrides, rest


def apply_overrides(values: MutableMapping[str, Any], overrides: dict[str, str]) -> list[str]:
    """Sets each dotted path in `values`, in place; sections on the way are created.

    Whether a key exists in the schema is not known here; `build_dataclass` says so.

    Returns:
        One sentence for each path that runs through a leaf or names a list item that is not there.
    """
    problems = []
    for path, text in overrides.items():
        try:
            _set(values, path, parse_literal(text))
        except UserError as error:
            problems.append(str(error))
    return problems


def _set(values: MutableMapping[str, Any], path: str, value: Any) -> None:
    """Sets one dotted path."""
    *parents, leaf = path.split(".")
    node: Any = values
    for depth, name in enumerate(parents):
        node = _child(node, name, "config." + ".".join(parents[: depth + 1]))
    node[_index(node, leaf, f"config.{path}") if isinstance(node, list) else leaf] = value


def parse_literal(text: str) -> Any:
    """Returns the Python literal in `text`, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _child(node: Any, name: str, path: str) -> Any:
    """Returns the section or list called `name` under `node`."""
    if isinstance(node, list):
        return node[_index(node, name, path)]
    child = node.setdefault(name, {})
    if not isinstance(child, MutableMapping | list):
        raise UserError(f"{path} is the value {child!r}, not a section that has keys of its own")
    return child


def _index(items: list, name: str, path: str) -> int:
    """Returns the position of the list item with this name or index."""
    names = [item.get("name") if isinstance(item, MutableMapping) else None for item in items]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    known = [shown for shown in names if shown] or [str(index) for index in range(len(items))]
    near = nearest(name, known)
    guess = f" did you mean {near[0]}?" if near else ""
    raise UserError(f"{path}: no such item;{guess} items here: {', '.join(known)}")
