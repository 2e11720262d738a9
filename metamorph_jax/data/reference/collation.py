"""How the references make a batch of samples: padded to the longest, then cut."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from metamorph_jax.data.reference.labels import IGNORE
from metamorph_jax.typing import Bool, Int


def collate(
    samples: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad: int,
    limit: int,
    side: Literal["left", "right"] = "right",
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Returns ids, labels and the attention mask of a batch.

    The mask is false wherever the id is `pad`, also where it is a token of the text.

    Args:
        samples: (ids, labels) of each.
        pad: id that fills up.
        limit: `model_max_length`; more is cut off at the end.
        side: where padding goes.

    **Source:** `collation` of the golden templates.
    """
    length = max(len(ids) for ids, _ in samples)
    ids = np.full((len(samples), length), pad, np.int64)
    labels = np.full((len(samples), length), IGNORE, np.int64)
    for row, (row_ids, row_labels) in enumerate(samples):
        count = len(row_ids)
        here = slice(length - count, length) if side == "left" else slice(count)
        ids[row, here], labels[row, here] = row_ids, row_labels
    ids, labels = ids[:, :limit], labels[:, :limit]
    return ids, labels, ids != pad
