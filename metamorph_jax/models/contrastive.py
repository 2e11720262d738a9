"""Heads for pretraining a tower of one's own: captions against images, and pixels back.

The loss on what they return is in `objectives/sigmoid.py`. After pretraining they are not used.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.layers import Embed, Linear, zeros
from metamorph_jax.ops.normalize import l2_normalize
from metamorph_jax.typing import Array, Bool, Float, Int

# Source: SigLIP (arXiv 2303.15343), section 3.2: with these, training starts close to "no pair
# matches", which is nearly true.
_INITIAL_TEMPERATURE = 10.0
_INITIAL_BIAS = -5.0


class ContrastiveOutput(NamedTuple):
    """What the contrastive objective needs.

    Attributes:
        image_embedding: unit length.
        text_embedding: unit length.
        temperature: factor of the cosines, exp(logit_scale).
        bias: added to the scaled cosines.
        features: visual tokens.
        reconstruction: pixels of each visual token's cell, in [-1, 1] if perfect.
    """

    image_embedding: Float[Array, "B C"]
    text_embedding: Float[Array, "B C"]
    temperature: Float[Array, ""]
    bias: Float[Array, ""]
    features: Float[Array, "B P E"]
    reconstruction: Float[Array, "B P pixels"]


class ContrastiveHead(nn.Module):
    """A bag-of-words text tower, two projections, and a linear way back to pixels."""

    config: ModelConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B P E"],
        tokens: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"],
    ) -> ContrastiveOutput:
        """Returns embeddings of images and captions, and the reconstruction."""
        cfg, types = self.config, (self.dtype, self.param_dtype)
        dim, width = cfg.contrastive_dim, cfg.visual_dim
        table = (cfg.llm.padded_vocab_size, dim)
        words = Embed(table, ("vocab", "contrastive"), *types, dim**-0.5, name="text_embed")(tokens)
        text_axes, image_axes = ("contrastive",) * 2, ("visual", "contrastive")
        text = Linear(
            "...C,CD->...D", (dim, dim), text_axes, *types, bias_init=zeros, name="text_proj"
        )(_masked_mean(words, token_mask))
        image = Linear(
            "...E,ED->...D", (width, dim), image_axes, *types, bias_init=zeros, name="image_proj"
        )(jnp.mean(features, axis=1))
        pixels = 3 * cell_size(cfg) ** 2
        back = Linear(
            "...E,EX->...X",
            (width, pixels),
            ("visual", "patch"),
            *types,
            bias_init=zeros,
            name="pixel_head",
        )
        return ContrastiveOutput(
            image_embedding=l2_normalize(image.astype(jnp.float32)),
            text_embedding=l2_normalize(text.astype(jnp.float32)),
            temperature=jnp.exp(self._scalar("logit_scale", math.log(_INITIAL_TEMPERATURE))),
            bias=self._scalar("logit_bias", _INITIAL_BIAS),
            features=features,
            reconstruction=back(features).astype(jnp.float32),
        )

    def _scalar(self, name: str, start: float) -> Float[Array, ""]:
        init = nn.with_logical_partitioning(nn.initializers.constant(start), ())
        return self.param(name, init, (), self.param_dtype).astype(jnp.float32)


def cell_size(config: ModelConfig) -> int:
    """Returns the side, in pixels, of the cell of the image that one visual token stands for."""
    return config.vision.image_size // round(config.visual_tokens.num_tokens**0.5)


def _masked_mean(words: Float[Array, "B T C"], mask: Bool[Array, "B T"]) -> Float[Array, "B C"]:
    """Returns the mean over real tokens; zero for an empty caption."""
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("BTC,BT->BC", words.astype(jnp.float32), weights)
    return total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
