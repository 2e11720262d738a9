"""Strict reading of a nested mapping into a dataclass: every mistake at once, by dotted path.

The fields of the dataclass are the schema: names, types, defaults, `Literal` choices, and a
`problems()` method for what must fit together. Nothing is converted silently except int -> float
and list -> tuple.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from metamorph_jax.errors import UserError, nearest


def build_dataclass(
    cls: type, values: Mapping[str, Any], path: str = "config", problems: Sequence[str] = ()
) -> Any:
    """Returns an instance of `cls` with the fields in `values`.

    Args:
        cls: a dataclass.
        values: nested mappings (a ConfigDict is one) with the names of the fields.
        path: dotted path of `values`, for messages.
        problems: already found elsewhere, to be reported together.

    Raises:
        UserError: listing every unknown, missing, mistyped or contradictory value.
    """
    problems = list(problems)
    built = _build(cls, values, path, problems)
    if problems:
        count = len(problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the recipe:"
        raise UserError("\n  - ".join([head, *problems]))
    return built


def _build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """Reads one dataclass, appending to `problems`; returns None if it could not be built."""
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        problems.append(f"{path}: got {_shown(values)}, expected a section ({cls.__name__})")
        return None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    before = len(problems)
    for name in values:
        if name not in fields:
            problems.append(unknown_key(path, name, fields))
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = read_value(hints[name], values[name], f"{path}.{name}", problems)
        elif _is_required(field):
            problems.append(f"{path}.{name}: missing; expected {type_name(hints[name])}")
    if len(problems) > before:
        return None
    built = cls(**arguments)
    if hasattr(built, "problems"):
        problems.extend(f"{path}: {problem}" for problem in built.problems())
    return built


def read_value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Returns `value` as the type `hint` asks for, or None after appending to `problems`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return read_value(hint, value, path, problems)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, problems)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            read_value(arguments[0], item, f"{path}.{_item_name(item, index)}", problems)
            for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, Mapping):
        return {
            str(key): read_value(arguments[1], item, f"{path}.{key}", problems)
            for key, item in value.items()
        }
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    near = nearest(value, arguments) if origin is Literal and isinstance(value, str) else []
    hint_text = f"; did you mean {near[0]!r}?" if near else ""
    problems.append(f"{path}: got {_shown(value)}, expected {type_name(hint)}{hint_text}")
    return None


def unknown_key(path: str, name: str, known: Mapping[str, Any]) -> str:
    """Returns the message for a key that the schema does not have."""
    near = nearest(name, known)
    guess = f" did you mean {' or '.join(near)}?" if near else ""
    return f"{path}.{name}: no such key;{guess} keys here: {', '.join(sorted(known))}"


def type_name(hint: Any) -> str:
    """Returns how the type reads in a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin is tuple:
        return f"a list of {type_name(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {type_name(arguments[1])}"
    if hint is type(None):
        return "None"
    return hint.__name__


def _item_name(item: Any, index: int) -> str:
    """Returns the `name` of a list item that has one (stages), else its index."""
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    return name if isinstance(name, str) else str(index)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
