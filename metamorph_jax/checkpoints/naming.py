"""State <-> arrays under stable names, and the comparison of what is wanted with what is stored.

A name is the path through the state: "params/connector/layers_0/kernel", "opt_state/0/mu/...". It
depends on keys and field names only, not on Python classes, so a checkpoint can be read by code
that has never heard of the optimiser which wrote it, or in part.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.trees import flatten

_SHOWN = 10


class ArraySpec(NamedTuple):
    """Shape and dtype name of one stored array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def unnest(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `trees.unflatten` was given."""
    named = {}
    for key, value in nested.items():
        inner = unnest(value) if isinstance(value, Mapping) else None
        named |= {key: value} if inner is None else {f"{key}/{k}": v for k, v in inner.items()}
    return named


def array_specs(named: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """Returns shape and dtype of every array (or jax.ShapeDtypeStruct) by name.

    Raises:
        TypeError: a leaf is no array, or a typed random key (store `jax.random.key_data`).
    """
    specs = {}
    for name, leaf in named.items():
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"{name} is a {type(leaf).__name__}; the state holds jax.Arrays only")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a typed random key; store jax.random.key_data of it")
        specs[name] = ArraySpec(tuple(leaf.shape), str(leaf.dtype))
    return specs


def tree_fingerprint(tree: PyTree) -> str:
    """Returns a hash of the names and shapes in `tree` (arrays or jax.ShapeDtypeStruct).

    Equal for two models exactly if the parameters of one fit into the other.
    """
    specs = array_specs(flatten(tree))
    lines = sorted(f"{name} {list(spec.shape)}" for name, spec in specs.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_same_arrays(
    wanted: Mapping[str, ArraySpec],
    stored: Mapping[str, ArraySpec],
    where: str,
    *,
    cast_floats: bool = False,
) -> None:
    """Compares names, shapes and dtypes before anything is allocated.

    Args:
        wanted: what the model (and optimiser) of this run consists of.
        stored: what the checkpoint holds.
        where: path of the checkpoint, for the message.
        cast_floats: let floating-point dtypes differ.

    Raises:
        UserError: listing missing, surplus and differing arrays, nearest names, and what to do.
    """
    missing = [name for name in wanted if name not in stored]
    surplus = [name for name in stored if name not in wanted]
    differing = [
        name
        for name in wanted
        if name in stored and not _fits(wanted[name], stored[name], cast_floats)
    ]
    if not (missing or surplus or differing):
        return
    lines = [f"{where} is a checkpoint of another model or another stage's optimiser."]
    lines += _listing(
        "wanted by this run, absent from the checkpoint",
        [name + _hint(name, surplus) for name in missing],
    )
    lines += _listing("in the checkpoint, unknown to this run", surplus)
    lines += _listing(
        "of another shape or dtype",
        [f"{name}: {stored[name]} stored, {wanted[name]} wanted" for name in differing],
    )
    lines.append(
        "Use the recipe that wrote it (the key `recipe` of meta.json in that folder), or give "
        "this run a folder of its own with --workdir."
    )
    raise UserError("\n".join(lines))


def _fits(wanted: ArraySpec, stored: ArraySpec, cast_floats: bool) -> bool:
    if wanted.shape != stored.shape:
        return False
    both = (wanted.dtype, stored.dtype)
    floats = all(jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating) for dtype in both)
    return wanted.dtype == stored.dtype or (cast_floats and floats)


def _hint(name: str, surplus: Iterable[str]) -> str:
    similar = nearest(name, surplus, count=1)
    return f"  (nearest: {similar[0]})" if similar else ""


def _listing(title: str, entries: list[str]) -> list[str]:
    """Returns at most `_SHOWN` entries under a title with their number; parameters first."""
    if not entries:
        return []
    entries = sorted(entries, key=lambda entry: (not entry.startswith("params/"), entry))
    lines = [f"  {len(entries)} {title}:"] + [f"    {entry}" for entry in entries[:_SHOWN]]
    more = len(entries) - _SHOWN
    return [*lines, f"    ... and {more} more"] if more > 0 else lines
