"""Trees of arrays by the names of their leaves: "connector/layers_0/kernel".

A name is the path through the tree. It depends on keys and field names only, not on Python classes,
so it serves recipes, optimiser state and checkpoints alike.
"""

from collections.abc import Mapping
from typing import Any

import jax

from metamorph_jax.typing import PyTree


def flatten(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of `tree` by name, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: two leaves have the same name (dict keys 1 and "1", say).
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(_part(key) for key in path)
        if name in named:
            raise ValueError(f"two leaves of the tree are called {name!r}")
        named[name] = leaf
    return named


def unflatten(named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"a/b": x}` as the nested dict `{"a": {"b": x}}`."""
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *folders, last = name.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


def _part(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            # "/" separates our parts and "." those of Orbax; keys such as the labels of
            # optax.partition contain both.
            text = str(getattr(key, attribute))
            return text.replace("%", "%25").replace("/", "%2F").replace(".", "%2E")
    raise TypeError(f"unknown kind of tree key: {key!r}")
