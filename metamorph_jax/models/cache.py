"""Keys and values of positions that were already decoded.

The cache is an explicit pytree that the caller owns, passes in and gets back; the decoding loop is
in `decoding/`. A slot is a place in the cache. All rows of a batch write to the same slot, so
prompts are padded on the *left*, and a slot is not a position: a write is then one slice of memory
(per row it would be a scatter). Each layer has arrays of its own, laid out for
`ops.attention.cached_attention`, which reads them where they lie.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig
from metamorph_jax.typing import Array, Bool, Float, Int


class LayerCache(NamedTuple):
    """What decoding remembers of one layer; R = B * K, the heads of a row together.

    Attributes:
        key: after rotary embedding.
        value: as projected.
    """

    key: Float[Array, "R S H"]
    value: Float[Array, "R S H"]


class KVCache(NamedTuple):
    """What decoding remembers.

    Attributes:
        layers: keys and values, layer by layer.
        valid: slots that hold a real token and may be looked at.
    """

    layers: tuple[LayerCache, ...]
    valid: Bool[Array, "B S"]


def create_cache(
    config: ModelConfig | LlamaConfig, batch: int, max_len: int, dtype: jnp.dtype | str
) -> KVCache:
    """Returns an empty cache of `max_len` slots per row."""
    llm = config.llm if isinstance(config, ModelConfig) else config
    shape = (batch * llm.num_kv_heads, max_len, llm.head_dim)
    return KVCache(
        layers=tuple(
            LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(llm.num_layers)
        ),
        valid=jnp.zeros((batch, max_len), bool),
    )


def grow_cache(cache: KVCache, num_slots: int) -> KVCache:
    """Returns the cache with `num_slots` empty slots more."""
    wide = ((0, 0), (0, num_slots), (0, 0))
    layers = jax.tree.map(lambda stored: jnp.pad(stored, wide), cache.layers)
    return KVCache(layers, jnp.pad(cache.valid, ((0, 0), (0, num_slots))))


def mark_valid(
    cache: KVCache, write_index: Int[Array, ""], token_mask: Bool[Array, "B T"]
) -> KVCache:
    """Returns the cache with slots write_index + t marked as real where `token_mask` says so."""
    valid = jax.lax.dynamic_update_slice(cache.valid, token_mask, (0, write_index))
    return cache._replace(valid=valid)


def write_layer(
    cache: LayerCache,
    write_index: Int[Array, ""],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
) -> LayerCache:
    """Returns one layer's cache with new keys and values, which must fit into it."""

    def write(old, new):
        new = einops.rearrange(new.astype(old.dtype), "B T K H -> (B K) T H")
        return jax.lax.dynamic_update_slice(old, new, (0, write_index, 0))

    return LayerCache(write(cache.key, key), write(cache.value, value))
