"""Who may look at whom: causal order, packed segments, and the slots of a decoding cache.

True means "may look". How masks are used is in `attention.py`.
"""

import jax.numpy as jnp

from metamorph_jax.typing import Array, Bool, Int


def causal_segment_mask(segment_ids: Int[Array, "B S"], first: int = 0) -> Bool[Array, "B T S"]:
    """Returns the mask of packed rows: earlier or equal position, same segment, no padding (0).

    Order is the order in the row, not `positions`, which restart in every segment.

    Args:
        segment_ids: of the row, or of its beginning.
        first: place of the first query; all from there on are queries.
    """
    queries, keys = segment_ids[:, first:, None], segment_ids[:, None, :]
    order = jnp.arange(segment_ids.shape[1])
    causal = order[None, first:, None] >= order[None, None, :]
    return causal & (queries == keys) & (keys != 0)


def cache_mask(
    valid: Bool[Array, "B S"], write_index: Int[Array, ""], num_new: int
) -> Bool[Array, "B T S"]:
    """Returns the mask of `num_new` queries that were just written into cache slots.

    Args:
        valid: slots that hold a real token (padding of the prompt does not), new ones included.
        write_index: slot of the first new query; query t sits at write_index + t.
        num_new: T.
    """
    slots = jnp.arange(valid.shape[1])
    query_slots = write_index + jnp.arange(num_new)
    causal = slots[None, :] <= query_slots[:, None]
    return valid[:, None, :] & causal[None, :, :]
