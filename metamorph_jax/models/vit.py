"""Vision towers: SigLIP and CLIP up to the feature layer.

Only the blocks that are used are created, and nothing after them: no post-layernorm, no pooling
head. "Layer -1" therefore means the same whatever a library's release calls its last hidden state.
Reduction to visual tokens happens in `metamorph.py`.
"""

import einops
import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.models.layers import LayerNorm, Linear, fan_in_normal, zeros
from metamorph_jax.models.stack import stack_blocks
from metamorph_jax.ops.activations import ACTIVATIONS
from metamorph_jax.ops.attention import attention
from metamorph_jax.sharding.rules import constrain
from metamorph_jax.typing import Array, Float


class VitAttention(nn.Module):
    """Self-attention with biases; every token sees every other."""

    config: VisionConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B M E"]) -> Float[Array, "B M E"]:
        """Returns the update."""
        cfg = self.config
        shape = (cfg.embed_dim, cfg.num_heads, cfg.embed_dim // cfg.num_heads)
        axes = ("vision_embed", "vision_heads", "head_dim")
        fields = {"dtype": self.dtype, "param_dtype": self.param_dtype, "bias_init": zeros}

        def project(name: str):
            y = Linear("...E,ENH->...NH", shape, axes, name=name, **fields)(x)
            return constrain(y, "images", "patches", "heads", "head_dim")

        mixed = attention(project("query"), project("key"), project("value"))
        out = (*shape[1:], shape[0]), (*axes[1:], axes[0])
        init = fan_in_normal(_residual_scale(cfg))
        return Linear("...NH,NHE->...E", *out, name="out", kernel_init=init, **fields)(mixed)


class VitMlp(nn.Module):
    """Two linear layers with an activation between."""

    config: VisionConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B M E"]) -> Float[Array, "B M E"]:
        """Returns the update."""
        cfg = self.config
        shape, axes = (cfg.embed_dim, cfg.mlp_dim), ("vision_embed", "vision_mlp")
        fields = {"dtype": self.dtype, "param_dtype": self.param_dtype, "bias_init": zeros}
        inner = Linear("...E,EF->...F", shape, axes, name="up", **fields)(x)
        inner = constrain(ACTIVATIONS[cfg.mlp_activation](inner), "images", "patches", "mlp")
        out = shape[::-1], axes[::-1]
        init = fan_in_normal(_residual_scale(cfg))
        return Linear("...F,FE->...E", *out, name="down", kernel_init=init, **fields)(inner)


class VitBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to the residual stream."""

    config: VisionConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, own: None):
        """Returns (x, None), as `stack_blocks` wants it."""
        fields = (self.config, self.dtype, self.param_dtype)
        norm = (self.config.norm_eps, "vision_embed", self.dtype, self.param_dtype)
        normed = LayerNorm(*norm, name="attention_norm")(x)
        x = constrain(x + VitAttention(*fields, name="attention")(normed), *_TOKENS)
        normed = LayerNorm(*norm, name="mlp_norm")(x)
        return constrain(x + VitMlp(*fields, name="mlp")(normed), *_TOKENS), None


_TOKENS = ("images", "patches", "embed")


class PatchEmbed(nn.Module):
    """Patches of pixels -> vectors: a convolution whose stride is its size, as one product."""

    config: VisionConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B M E"]:
        """Returns one vector per patch, row by row; pixels past the last full patch are unused."""
        cfg = self.config
        side, patch = cfg.grid_size, cfg.patch_size
        pixels = pixels[:, : side * patch, : side * patch]
        patches = einops.rearrange(
            pixels, "B (h p) (w q) c -> B (h w) p q c", h=side, w=side, p=patch, q=patch
        )
        linear = Linear(
            "...pqc,pqcE->...E",
            (patch, patch, 3, cfg.embed_dim),
            ("patch", "patch", "patch", "vision_embed"),
            self.dtype,
            self.param_dtype,
            bias_init=zeros if cfg.family == "siglip" else None,
        )
        # The layer's parameters are this module's own: patch_embed/kernel.
        nn.share_scope(self, linear)
        return linear(patches)


class VisionTower(nn.Module):
    """Normalised pixels -> tokens of the feature layer."""

    config: VisionConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B M E"]:
        """Returns the hidden states after `num_used_layers` blocks, in `dtype`."""
        cfg, types = self.config, (self.dtype, self.param_dtype)
        x = PatchEmbed(cfg, *types, name="patch_embed")(pixels)
        has_cls = cfg.family == "clip"
        if has_cls:
            cls = _Table((cfg.embed_dim,), ("vision_embed",), *types, name="class_embed")()
            cls = jnp.broadcast_to(cls[None, None, :], (x.shape[0], 1, cfg.embed_dim))
            x = jnp.concatenate([cls, x], axis=1)
        shape = (cfg.grid_size**2 + int(has_cls), cfg.embed_dim)
        table = _Table(shape, ("positions", "vision_embed"), *types, name="position_embed")
        x = constrain(x + table()[None], *_TOKENS)
        if has_cls:
            x = LayerNorm(cfg.norm_eps, "vision_embed", *types, name="pre_norm")(x)
        if cfg.num_used_layers:
            x, _ = stack_blocks(
                VitBlock,
                num_layers=cfg.num_used_layers,
                num_shared=0,
                remat=cfg.remat,
                unroll=cfg.scan_unroll,
                name="blocks",
                config=cfg,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )(x, None)
        return x[:, 1:] if has_cls and cfg.cls_policy == "patch" else x


class _Table(nn.Module):
    """A learned constant named `embedding`."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Float[Array, "..."]:
        """Returns the constant in `dtype`."""
        normal = nn.initializers.normal(self.shape[-1] ** -0.5)
        init = nn.with_logical_partitioning(normal, self.axes)
        return self.param("embedding", init, self.shape, self.param_dtype).astype(self.dtype)


def _residual_scale(config: VisionConfig) -> float:
    """Returns the factor that keeps the residual stream's variance near 1 over 2 L additions."""
    return (2 * config.num_layers) ** -0.5
