"""The decoder of Llama and its relatives: RMSNorm, rotary embedding, grouped heads, gated MLP.

Parameter shapes follow the einsum letters of `metamorph_jax/typing.py`. The names of Hugging Face
checkpoints are mapped in `hub/llama.py`. The decoding cache is in `cache.py`.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from metamorph_jax.config.schema_model import LlamaConfig
from metamorph_jax.models.attend import attend
from metamorph_jax.models.cache import KVCache, mark_valid, write_layer
from metamorph_jax.models.layers import Embed, Linear, RMSNorm, fan_in_normal, zeros
from metamorph_jax.models.stack import RESIDUAL_NAME, BlockList, stack_blocks
from metamorph_jax.ops.activations import ACTIVATIONS
from metamorph_jax.ops.attention import cached_attention
from metamorph_jax.ops.masks import cache_mask
from metamorph_jax.ops.rope import apply_rope, rope_tables
from metamorph_jax.sharding.rules import constrain
from metamorph_jax.typing import Array, Bool, Float, Int

# Logit of rows that only pad the vocabulary; finite, so that softmax and argmax stay defined.
PADDED_LOGIT = -1e9


class LlamaAttention(nn.Module):
    """Self-attention with rotary embedding."""

    config: LlamaConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache, rope, seen, write_index):
        """Returns (update "B T D", cache); without a cache the keys are those of `x` itself."""
        cfg = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        bias = zeros if cfg.qkv_bias else None

        def project(name: str, num: int, axis: str):
            shape, axes = (cfg.embed_dim, num, cfg.head_dim), ("embed", axis, "head_dim")
            y = Linear("...D,DNH->...NH", shape, axes, name=name, bias_init=bias, **types)(x)
            return constrain(y, "batch", "length", axis, "head_dim")

        query = apply_rope(project("query", cfg.num_heads, "heads"), rope)
        key = apply_rope(project("key", cfg.num_kv_heads, "kv_heads"), rope)
        value = project("value", cfg.num_kv_heads, "kv_heads")
        if cache is None:
            mixed = attend(cfg.attention, query, key, value, seen)
        else:
            cache = write_layer(cache, write_index, key, value)
            mixed = cached_attention(query, cache.key, cache.value, seen)
        shape, axes = (cfg.num_heads, cfg.head_dim, cfg.embed_dim), ("heads", "head_dim", "embed")
        init = fan_in_normal(_residual_scale(cfg))
        out = Linear("...NH,NHD->...D", shape, axes, name="out", kernel_init=init, **types)
        return out(mixed), cache


class LlamaMlp(nn.Module):
    """Down(activation(gate(x)) * up(x)); with SiLU: SwiGLU."""

    config: LlamaConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the update."""
        cfg = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        wide, axes = (cfg.embed_dim, cfg.mlp_dim), ("embed", "mlp")
        gate = Linear("...D,DF->...F", wide, axes, name="gate", **types)(x)
        up = Linear("...D,DF->...F", wide, axes, name="up", **types)(x)
        inner = constrain(ACTIVATIONS[cfg.activation](gate) * up, "batch", "length", "mlp")
        init = fan_in_normal(_residual_scale(cfg))
        down = Linear(
            "...F,FD->...D", wide[::-1], axes[::-1], name="down", kernel_init=init, **types
        )
        return down(inner)


class LlamaBlock(nn.Module):
    """Attention and MLP, each behind an RMSNorm and added to the residual stream."""

    config: LlamaConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache, rope, seen, write_index):
        """Returns (hidden, cache of this layer), as `stack_blocks` wants it.

        Args:
            x: hidden states, "B T D".
            cache: `LayerCache`; None: `x` is all there is to look at.
            rope: tables.
            seen: who may look at whom: `segment_ids` of rows, the mask of a cache.
            write_index: slot of the first position of `x`.
        """
        fields = (self.config, self.dtype, self.param_dtype)
        norm = {"eps": self.config.norm_eps, "axis": "embed", "dtype": self.dtype}
        norm["param_dtype"] = self.param_dtype
        x = checkpoint_name(constrain(x, "batch", "length", "embed"), RESIDUAL_NAME)
        normed = RMSNorm(name="attention_norm", **norm)(x)
        attention = LlamaAttention(*fields, name="attention")
        update, cache = attention(normed, cache, rope, seen, write_index)
        x = constrain(x + update, "batch", "length", "embed")
        x = x + LlamaMlp(*fields, name="mlp")(RMSNorm(name="mlp_norm", **norm)(x))
        return constrain(x, "batch", "length", "embed"), cache


class Llama(nn.Module):
    """The decoder without any notion of images: embeddings in, hidden states out.

    Attributes:
        stacked: whether parameters of the blocks are stacked (see `stack.py`); not, to decode.
    """

    config: LlamaConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    stacked: bool = True

    def setup(self):
        """Creates tables, blocks and norm; a tied model has no `lm_head`."""
        cfg = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        table = (cfg.padded_vocab_size, cfg.embed_dim)
        self.embed_tokens = Embed(table, ("vocab", "embed"), stddev=cfg.embed_dim**-0.5, **types)
        fields = {"config": cfg, **types}
        if self.stacked:
            self.blocks = stack_blocks(
                LlamaBlock,
                num_layers=cfg.num_layers,
                num_shared=3,
                remat=cfg.remat,
                unroll=cfg.scan_unroll,
                **fields,
            )
        else:
            self.blocks = BlockList(LlamaBlock, cfg.num_layers, fields)
        self.final_norm = RMSNorm(cfg.norm_eps, "embed", **types)
        if not cfg.tie_embeddings:
            self.lm_head = Linear(
                "...D,DV->...V",
                table[::-1],
                ("embed", "vocab"),
                result_dtype=jnp.dtype("float32"),
                **types,
            )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the embeddings of token ids."""
        return self.embed_tokens(tokens)

    def decode(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states after the final norm, causal within each segment."""
        return self._run(embeddings, positions, segment_ids, None, None)[0]

    def decode_cached(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: KVCache,
        write_index: Int[Array, ""],
        token_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Returns hidden states of T new positions and the cache that now holds them.

        Works for a whole prompt (T > 1) and for one token, and inside `jit` and `while_loop`; the
        blocks must not be stacked.

        Args:
            embeddings: of the new positions.
            positions: for the rotary embedding: real tokens count from 0.
            cache: from `create_cache`, or as returned by the call before.
            write_index: slot of the first new position, the same in all rows; the others follow.
            token_mask: False on the padding at the left of a prompt, and on rows that are done;
                such slots are never looked at. None: all are real.
        """
        if token_mask is None:
            token_mask = jnp.ones(positions.shape, bool)
        cache = mark_valid(cache, write_index, token_mask)
        mask = cache_mask(cache.valid, write_index, positions.shape[1])
        hidden, layers = self._run(embeddings, positions, mask, cache.layers, write_index)
        return hidden, cache._replace(layers=layers)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Returns float32 logits over the padded vocabulary; padding can never win."""
        cfg = self.config
        if cfg.tie_embeddings:
            table = self.embed_tokens.embedding.astype(self.dtype)
            hidden = hidden.astype(self.dtype)
            logits = jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)
        else:
            logits = self.lm_head(hidden)
        real = jnp.arange(cfg.padded_vocab_size) < cfg.vocab_size
        real = real.reshape((1,) * (hidden.ndim - 1) + real.shape)
        return jnp.where(real, logits, PADDED_LOGIT)

    def _run(self, x, positions, seen, caches, write_index):
        cfg = self.config
        rope = rope_tables(
            positions, head_dim=cfg.head_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling
        )
        x, caches = self.blocks(x.astype(self.dtype), caches, rope, seen, write_index)
        return self.final_norm(x), caches


def _residual_scale(config: LlamaConfig) -> float:
    """Returns the factor that keeps the residual stream's variance near 1 over 2 L additions."""
    return (2 * config.num_layers) ** -0.5
