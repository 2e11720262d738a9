"""Mapping tables between Hugging Face tensors and our parameters.

A table is a list of `Row`s: data, not code, so that both directions come from the same lines and a
test can compare the whole table with a real model. Read `llama.py` for an example.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import einops
import numpy as np

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.typing import PyTree

LAYER = "{layer}"
_SHOWN = 8  # names listed in a message before it is cut


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
        ours: path of the parameter, as "blocks/mlp/up/kernel".
        theirs: Hugging Face name; with "{layer}" there is one tensor per block, stacked in ours.
        layout: einops pattern from their dimensions to ours, without the layer. The letters are
            those of `metamorph_jax/typing.py`; every one has a size in the table, so that the
            pattern also checks the shape. V is the real vocabulary; ours pads it.
    """

    ours: str
    theirs: str
    layout: str


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of one model part.

    Attributes:
        rows: the tensors that are used.
        sizes: of all letters of the patterns, e.g. {"N": 4}.
        num_layers: how many blocks ours has.
        ignored: regular expressions of Hugging Face names that ours has no use for.
        padded_vocab_size: rows that ours allocates for V.
    """

    rows: Sequence[Row]
    sizes: Mapping[str, int]
    num_layers: int
    ignored: Sequence[str] = ()
    padded_vocab_size: int = 0

    def names(self) -> list[str]:
        """Returns every Hugging Face name that is used."""
        return [name for row in self.rows for name in self.names_of(row)]

    def names_of(self, row: Row) -> list[str]:
        """Returns the names of one row, in the order of the blocks."""
        if LAYER not in row.theirs:
            return [row.theirs]
        return [row.theirs.replace(LAYER, str(i)) for i in range(self.num_layers)]

    def is_ignored(self, name: str) -> bool:
        """Returns whether a Hugging Face name is known and of no use."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def check_names(table: Table, names: Sequence[str], what: str) -> None:
    """Compares the names that are there with those of the table.

    Raises:
        UserError: Names are missing or unknown.
    """
    expected = set(table.names())
    missing = sorted(expected - set(names))
    unknown = sorted(n for n in set(names) - expected if not table.is_ignored(n))
    if not missing and not unknown:
        return
    lines = [f"{what}: tensor names do not fit the configured model."]
    if missing:
        lines.append(f"  {len(missing)} missing: {_some(missing)}")
    if unknown:
        guess = nearest(unknown[0], expected, 1)
        hint = f" (nearest to the first: {guess[0]})" if guess else ""
        lines.append(f"  {len(unknown)} unknown: {_some(unknown)}{hint}")
    lines.append("  Check the model preset (number of layers, tie_embeddings, family).")
    raise UserError("\n".join(lines))


def read_tensors(table: Table, tensors: Mapping[str, np.ndarray], what: str) -> PyTree:
    """Returns the parameters of one part as a nested dict.

    Args:
        table: of the part.
        tensors: by Hugging Face name.
        what: the part's name, for messages.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of the configuration.
    """
    check_names(table, list(tensors), what)
    params: dict = {}
    for row in table.rows:
        parts = [_to_ours(table, row, name, tensors[name]) for name in table.names_of(row)]
        _insert(params, row.ours, np.stack(parts) if LAYER in row.theirs else parts[0])
    return params


def write_tensors(table: Table, params: PyTree) -> dict[str, np.ndarray]:
    """Returns the tensors of one part by Hugging Face name, vocabulary padding removed.

    Args:
        table: of the part.
        params: nested dict as `read_tensors` returns it.
    """
    tensors = {}
    for row in table.rows:
        theirs, ours = (side.strip() for side in row.layout.split("->"))
        value = np.asarray(_lookup(params, row.ours))
        parts = value if LAYER in row.theirs else [value]
        for name, part in zip(table.names_of(row), parts, strict=True):
            if "V" in ours:
                part = np.take(part, np.arange(table.sizes["V"]), axis=ours.split().index("V"))
            tensor = einops.rearrange(part, f"{ours} -> {theirs}", **row_sizes(table, row))
            tensors[name] = np.ascontiguousarray(tensor)
    return tensors


def _to_ours(table: Table, row: Row, name: str, tensor: np.ndarray) -> np.ndarray:
    sizes = row_sizes(table, row)
    try:
        value = einops.rearrange(tensor, row.layout, **sizes)
    except einops.EinopsError as error:
        raise UserError(
            f"{name} has shape {tensor.shape}, but the configuration needs {row.layout!r} with "
            f"{sizes}; check the sizes of the model preset"
        ) from error
    letters = row.layout.split("->")[1].split()
    if "V" not in letters:
        return value
    padding = table.padded_vocab_size - table.sizes["V"]
    return np.pad(value, [(0, padding if letter == "V" else 0) for letter in letters])


def row_sizes(table: Table, row: Row) -> dict[str, int]:
    """Returns the sizes of the letters that the pattern of a row has."""
    letters = set(re.findall(r"[A-Za-z]\w*", row.layout))
    return {letter: size for letter, size in table.sizes.items() if letter in letters}


def _lookup(tree: PyTree, path: str) -> np.ndarray:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _insert(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _some(names: Sequence[str]) -> str:
    more = f", ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
