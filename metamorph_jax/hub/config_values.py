"""A `config.json` that nobody has checked yet: each value is looked at when it is asked for.

What is read from it is in `decoder_configs.py`, `tower_configs.py` and `configs.py`. Files come
from anywhere, so every mistake in them is a message with file and key, never a traceback.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from metamorph_jax.errors import UserError

Choice = TypeVar("Choice")
# Of widths and counts, and of other numbers; a file that says more is damaged or means harm.
_LARGEST, _LARGEST_NUMBER = 2**20, 1e30
_REQUIRED = object()
# Our names in sentences about what does not fit together, as files call them.
_KEYS = {
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
}


class Values:
    """A section of a `config.json`.

    Args:
        values: as read from JSON.
        where: the file, for messages.
        path: keys that lead to the section, each with a dot behind it.
        defaults: for keys that the file leaves out. A null in the file is a value.

    Raises:
        UserError: `values` is no mapping.
    """

    def __init__(
        self,
        values: Any,
        where: str,
        path: str = "",
        defaults: Mapping[str, Any] | None = None,
    ):
        self.where, self.path, self._defaults = where, path, defaults or {}
        if not isinstance(values, Mapping):
            name = path.rstrip(".") or "the file"
            raise UserError(f"{where}: {name} is {_shown(values)}; expected an object of keys")
        self._values = values

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """Returns a value as it stands there; None: it is null, or missing and has no default."""
        return self._values.get(key, self._defaults.get(key))

    def raw(self) -> Mapping[str, Any]:
        """Returns the whole section as it stands there."""
        return self._values

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Values":
        """Returns the section with other defaults."""
        return Values(self._values, self.where, self.path, defaults)

    def replaced(self, key: str, value: Any) -> "Values":
        """Returns the section with another value under a key."""
        values = dict(self._values) | {key: value}
        return Values(values, self.where, self.path, self._defaults)

    def section(self, key: str) -> "Values":
        """Returns the section under a key."""
        return Values(self._required(key, "a section"), self.where, f"{self.path}{key}.")

    def size(self, key: str, default: Any = _REQUIRED, most: int = _LARGEST) -> int:
        """Returns a positive whole number, at most `most`; `default` for null or nothing."""
        value = self._required(key, "a whole number", default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(key, value, f"expected a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """Returns a positive number that float32 can hold; `default` for null or nothing."""
        value = self._required(key, "a number", default)
        if type(value) not in (int, float) or not 0 < value <= _LARGEST_NUMBER:
            raise self.wrong(key, value, "expected a positive, finite number")
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """Returns True or False; `default` for null or nothing."""
        value = self._required(key, "true or false", default)
        if type(value) is not bool:
            raise self.wrong(key, value, "expected true or false")
        return value

    def choice(self, key: str, table: Mapping[str, Choice], default: Any = _REQUIRED) -> Choice:
        """Returns the entry of `table` that a text names; `default` is a key of `table`."""
        known = ", ".join(repr(name) for name in table)
        value = self._required(key, f"one of {known}", default)
        if not isinstance(value, str) or value not in table:
            raise self.wrong(key, value, f"supported: {known}")
        return table[value]

    def refuse(self, key: str, allowed: Sequence[Any], why: str) -> None:
        """Raises a UserError unless a value is missing, null or among `allowed`."""
        value = self.get(key)
        if value is not None and not any(value is x or value == x for x in allowed):
            raise self.wrong(key, value, why)

    def wrong(self, key: str, value: Any, expected: str) -> UserError:
        """Returns the error that a value is wrong."""
        return UserError(f"{self.where}: {self.path}{key} is {_shown(value)}; {expected}")

    def _required(self, key: str, expected: str, default: Any = _REQUIRED) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is _REQUIRED:
            raise UserError(f"{self.where}: {self.path}{key} is missing; expected {expected}")
        return value


def checked(config: Any, where: str) -> Any:
    """Returns a configuration of ours that was made from a file.

    Raises:
        UserError: its parts do not fit together; all that does not is named as in the file.
    """
    if problems := config.problems():
        named = [re.sub(r"\w+", lambda word: _KEYS.get(word[0], word[0]), p) for p in problems]
        raise UserError(f"{where}: " + "; ".join(named))
    return config


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(value).__name__})"
