"""Rows for new tokens, in tensors with Hugging Face names.

MetaMorph adds two tokens, image start and image end, to a pretrained Llama.
"""

from collections.abc import Mapping

import numpy as np

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float

_INPUT = "model.embed_tokens.weight"
_BLOCK_ROWS = 4096  # a mean takes no more memory than that, as float32
_TABLES = (_INPUT, "lm_head.weight")


def mean_row(table: Float[np.ndarray, "V D"]) -> Float[np.ndarray, "D"]:
    """Returns the mean of a table's rows in its dtype; the table may be mapped from a file.

    **Source:** MetaMorph `model/metamorph_arch.py`: new tokens begin there.
    """
    mean = RunningMean()
    mean.add(table)
    return mean.row(table.dtype)


class RunningMean:
    """The mean of a table's rows, of which a part is seen at a time."""

    def __init__(self) -> None:
        self._total, self._count = np.float64(0), 0

    def add(self, rows: Float[np.ndarray, "V D"]) -> None:
        """Takes more rows into account."""
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS].astype(np.float32)
            self._total = self._total + block.sum(0, dtype=np.float64)
        self._count += len(rows)

    def row(self, dtype: np.dtype) -> Float[np.ndarray, "D"]:
        """Returns the mean of all rows so far in a dtype."""
        return (self._total / self._count).astype(dtype)


def extend_rows(table: Float[np.ndarray, "V D"], num_new: int) -> Float[np.ndarray, "V2 D"]:
    """Returns the table with `num_new` rows appended, each the mean of the old rows."""
    return np.concatenate([table, np.repeat(mean_row(table)[None], num_new, axis=0)])


def extend_vocab(tensors: Mapping[str, np.ndarray], vocab_size: int) -> dict[str, np.ndarray]:
    """Returns the tensors with input table and output head grown to `vocab_size` rows.

    Args:
        tensors: by Hugging Face name; a tied model has no head.
        vocab_size: rows wanted; a table that has them already stays as it is.

    Raises:
        UserError: A table is larger than `vocab_size`.
    """
    grown = dict(tensors)
    for name in _TABLES:
        if name not in tensors:
            continue
        num_new = vocab_size - tensors[name].shape[0]
        if num_new < 0:
            raise UserError(
                f"{name} has {tensors[name].shape[0]} rows, more than vocab_size={vocab_size}; "
                "set model.llm.vocab_size to at least the checkpoint's"
            )
        grown[name] = extend_rows(tensors[name], num_new)
    return grown


def apply_adapter(
    tensors: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray], num_new: int = 2
) -> dict[str, np.ndarray]:
    """Returns the tensors after loading a first-stage adapter.

    The projector is taken whole. Of the input table only the last `num_new` rows are taken,
    although the adapter holds (and its stage trained) all; the output head stays as it is.

    Args:
        tensors: of the model, by name.
        adapter: `mm_projector.*` and `embed_tokens.weight`, with or without "model." in front.
        num_new: how many tokens were added to the vocabulary.

    **Source:** MetaMorph `model/metamorph_arch.py`, `initialize_vision_tokenizer`.
    """
    result = dict(tensors)
    for name, value in adapter.items():
        bare = name.removeprefix("model.")
        if bare == "embed_tokens.weight":
            result[_INPUT] = np.concatenate([tensors[_INPUT][:-num_new], value[-num_new:]])
        elif bare.startswith("mm_projector."):
            known = [spelling for spelling in (bare, f"model.{bare}") if spelling in tensors]
            result[known[0] if known else name] = value
        else:
            raise UserError(
                f"adapter holds {name!r}; mm_projector.* and embed_tokens were expected"
            )
    return result
