"""Which parameters a stage trains: the rest gets no gradient and no optimiser state.

The trained part travels as a flat dict {path: array}, so that gradients, optimiser state and
checkpoints all name a parameter the same way. Two rows of the input embedding can be trained
alone; they appear under the table's path with `@new_rows` behind it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.trees import flatten, unflatten
from metamorph_jax.typing import Array, PyTree

TOKEN_TABLE = "language_model/embed_tokens/embedding"
NEW_ROWS = TOKEN_TABLE + "@new_rows"


@dataclasses.dataclass(frozen=True)
class Selection:
    """The trained part of a parameter tree.

    Attributes:
        paths: leaves that are trained whole.
        token_rows: rows of the input embedding that are trained besides, or ().
    """

    paths: frozenset[str]
    token_rows: tuple[int, ...] = ()

    def split(self, params: PyTree) -> dict[str, Array]:
        """Returns the trained arrays of `params` by path."""
        leaves = flatten(params)
        trained = {path: leaves[path] for path in leaves if path in self.paths}
        if self.token_rows:
            trained[NEW_ROWS] = leaves[TOKEN_TABLE][self.token_rows, :]
        return trained

    def merge(self, params: PyTree, trained: Mapping[str, Array]) -> PyTree:
        """Returns `params` with the trained arrays put in their places."""
        leaves = dict(flatten(params))
        for path, value in trained.items():
            if path == NEW_ROWS:
                leaves[TOKEN_TABLE] = leaves[TOKEN_TABLE].at[self.token_rows, :].set(value)
            else:
                leaves[path] = value
        return unflatten(leaves)


def select(
    params: PyTree,
    trained: Sequence[str],
    excluded: Sequence[str] = (),
    token_rows: tuple[int, ...] = (),
    where: str = "stage",
) -> Selection:
    """Returns the selection that a stage's prefixes describe.

    Args:
        params: the whole tree (only its structure matters).
        trained: prefixes, in whole path components; "/" is everything.
        excluded: prefixes taken out again.
        token_rows: rows of the input embedding to train besides.
        where: config path of the stage, for messages.

    Raises:
        UserError: a prefix matches nothing, or nothing is left to train.
    """
    paths = list(flatten(params))
    chosen = _matching(paths, trained, f"{where}.trained")
    chosen -= _matching(paths, excluded, f"{where}.excluded")
    if not chosen and not token_rows:
        raise UserError(f"{where}: trains nothing; list prefixes of parameters in `trained`")
    if TOKEN_TABLE in chosen:
        token_rows = ()
    return Selection(frozenset(chosen), tuple(token_rows))


def _matching(paths: list[str], prefixes: Sequence[str], where: str) -> set[str]:
    """Returns the paths under any of the prefixes; a prefix without any is an error."""
    found: set[str] = set()
    for prefix in prefixes:
        stem = prefix.strip("/")
        hits = {path for path in paths if not stem or path == stem or path.startswith(stem + "/")}
        if not hits:
            known = {"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2, 3)}
            near = nearest(stem, known)
            top = sorted({path.split("/")[0] for path in paths})
            raise UserError(
                f"{where}: {prefix!r} is no prefix of a parameter; "
                + (f"did you mean {' or '.join(near)}? " if near else "")
                + f"top-level names: {', '.join(top)}"
            )
        found |= hits
    return found
