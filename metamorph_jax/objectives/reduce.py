"""Sums and counts -> means: the one place where a mean is taken.

A masked mean over nothing has NaN *gradients* in jax, so every division is by max(count, 1).
"""

from typing import NamedTuple

import einops
import jax.numpy as jnp

from metamorph_jax.typing import Array, Float


class RowSums(NamedTuple):
    """A quantity summed over what counts, per row of the batch.

    Attributes:
        sum: float32.
        count: how many were summed, float32 (exact up to 16 million).
    """

    sum: Float[Array, "B"]
    count: Float[Array, "B"]


def masked_row_sums(values: Float[Array, "B T"], mask: Float[Array, "B T"]) -> RowSums:
    """Returns the sums over positions where `mask` is 1; what is masked out may be anything finite.

    Args:
        values: per position.
        mask: float32, 0 or 1.
    """
    kept = jnp.where(mask > 0, values.astype(jnp.float32), 0.0)
    return RowSums(jnp.sum(kept, axis=1), jnp.sum(mask, axis=1))


def weighted_mean(
    sums: Float[Array, "B"],
    counts: Float[Array, "B"],
    mean_over: str = "global_batch",
    num_micro: int = 1,
) -> Float[Array, ""]:
    """Returns the mean over all that counts, in float32; 0 with zero gradients if nothing does.

    Args:
        sums: per row.
        counts: per row.
        mean_over: `global_batch`: every token weighs alike. `micro_batch`: the mean of the means of
            `num_micro` groups of consecutive rows, in which a token of a group with few weighs
            more; a group with none adds 0, as does data-parallel averaging of losses.
        num_micro: data shards times accumulation steps; `micro_batch` only; divides the rows.

    **Source:** `micro_batch` is what the released MetaMorph trainer does (each device takes the
    mean of its own rows), except that its mean over nothing is NaN.
    """
    return jnp.vdot(row_weights(counts, mean_over, num_shards=num_micro), sums)


def row_weights(
    counts: Float[Array, "B"],
    mean_over: str = "global_batch",
    num_shards: int = 1,
    num_steps: int = 1,
) -> Float[Array, "B"]:
    """Returns what to multiply each row's sum with, so that adding up the rows gives the mean.

    Weights depend on the batch alone. Gradients of weighted sums can therefore be accumulated over
    micro-batches and still be those of the whole batch.

    Args:
        counts: per row.
        mean_over: see `weighted_mean`.
        num_shards: parts of consecutive rows, one per data shard.
        num_steps: accumulation steps; step i takes the rows i, i + num_steps, ... of each shard.
    """
    counts = counts.astype(jnp.float32)
    if mean_over == "global_batch":
        return jnp.broadcast_to(1.0 / jnp.maximum(jnp.sum(counts), 1.0), counts.shape)
    if mean_over != "micro_batch":
        raise ValueError(f"mean_over={mean_over!r} is neither 'global_batch' nor 'micro_batch'")
    grouped = einops.rearrange(counts, "(s b m) -> s b m", s=num_shards, m=num_steps)
    totals = jnp.maximum(jnp.sum(grouped, axis=1, keepdims=True), 1.0) * num_shards * num_steps
    return einops.rearrange(jnp.broadcast_to(1.0 / totals, grouped.shape), "s b m -> (s b m)")
