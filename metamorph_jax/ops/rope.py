"""Rotary position embedding in the Hugging Face convention.

The first half of a head is paired with the second half (not even with odd entries), so weights of
Hugging Face checkpoints are used as they are. Read `attention.py` next.
"""

import math

import jax.numpy as jnp
import numpy as np

from metamorph_jax.config.schema_model import RopeScaling
from metamorph_jax.typing import Array, Float, Int


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling
) -> Float[np.ndarray, "half"]:
    """Returns the angle per position, in radians, of each of the head_dim / 2 pairs.

    Computed on the host in float32, as the reference does: float64 would differ in the last bit,
    which long positions magnify.

    **Source:** HF transformers `modeling_rope_utils.py`, functions for `default`, `linear` and
    `llama3`.
    """
    exponent = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(theta) ** exponent
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    return frequencies


def _llama3_frequencies(
    frequencies: Float[np.ndarray, "half"], scaling: RopeScaling
) -> Float[np.ndarray, "half"]:
    """Keeps short wavelengths, stretches long ones, and blends between."""
    wavelength = np.float32(2 * math.pi) / frequencies
    longest_kept = scaling.original_max_seq_len / scaling.high_freq_factor
    shortest_stretched = scaling.original_max_seq_len / scaling.low_freq_factor
    stretched = frequencies / np.float32(scaling.factor)
    span = np.float32(scaling.high_freq_factor - scaling.low_freq_factor)
    turns = np.float32(scaling.original_max_seq_len) / wavelength
    kept_fraction = (turns - np.float32(scaling.low_freq_factor)) / span
    blended = (1 - kept_fraction) * stretched + kept_fraction * frequencies
    result = np.where(wavelength > shortest_stretched, stretched, blended)
    return np.where(wavelength < longest_kept, frequencies, result).astype(np.float32)


def rope_tables(
    positions: Int[Array, "B T"], *, head_dim: int, theta: float, scaling: RopeScaling
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Returns the cosines and sines of the angles at `positions`, in float32."""
    frequencies = jnp.asarray(inverse_frequencies(head_dim, theta, scaling))
    angles = jnp.einsum("BT,h->BTh", positions.astype(jnp.float32), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T N H"],
    tables: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
) -> Float[Array, "B T N H"]:
    """Returns `x` with each pair (first half, second half) rotated; float32 inside."""
    cos, sin = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
