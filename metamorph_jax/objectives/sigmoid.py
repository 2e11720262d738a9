"""Losses for pretraining a vision tower: captions against images, and pixels back.

**Source:** SigLIP (arXiv 2303.15343), algorithm 1. What is ours: rows with the same caption count
as matching, since a small data set repeats its captions.
"""

import jax
import jax.numpy as jnp

from metamorph_jax.objectives.reduce import RowSums
from metamorph_jax.ops.resample import image_cells
from metamorph_jax.typing import Array, Float, Int, Shaped


def sigmoid_loss(
    image_embedding: Float[Array, "B C"],
    text_embedding: Float[Array, "B C"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    caption_ids: Int[Array, "B"],
) -> RowSums:
    """Returns the loss of each image against all captions, summed over captions; count 1 each.

    Args:
        image_embedding: unit length.
        text_embedding: unit length.
        temperature: factor of the cosines.
        bias: added to the scaled cosines.
        caption_ids: equal numbers mean equal captions; rows with a negative one take no part.
    """
    cosines = jnp.einsum("BC,AC->BA", image_embedding, text_embedding)
    logits = cosines * temperature + bias
    matches = caption_ids[:, None] == caption_ids[None, :]
    losses = -jax.nn.log_sigmoid(jnp.where(matches, logits, -logits))
    counted = (caption_ids >= 0).astype(jnp.float32)
    return RowSums(counted * jnp.sum(losses * counted, axis=1), counted)


def reconstruction_loss(
    reconstruction: Float[Array, "B P pixels"], images: Shaped[Array, "B size size 3"]
) -> RowSums:
    """Returns the mean squared error of each image's pixels, which lie in [-1, 1]; count 1 each.

    Args:
        reconstruction: a cell of pixels per visual token, row by row.
        images: uint8.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}, but uint8 pixels are what is reconstructed")
    side = round(reconstruction.shape[1] ** 0.5)
    target = image_cells(images, side).astype(jnp.float32) / 127.5 - 1.0
    errors = jnp.mean(jnp.square(reconstruction - target), axis=(1, 2))
    return RowSums(errors, jnp.ones(errors.shape[0], jnp.float32))
