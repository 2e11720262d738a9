"""Keys and values of positions that were already decoded.

The cache is an explicit pytree that the caller owns, passes in and gets back; the decoding loop is
in `decoding/`. A slot is a place in the cache. All rows of a batch write to the same slot, so
prompts are padded on the *left*, and a slot is not a position: a write is then one slice of memory
(per row it would be a scatter), and slots lie next to each other, as attention reads them.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig
from metamorph_jax.typing import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """What decoding remembers.

    Attributes:
        key: after rotary embedding.
        value: as projected.
        valid: slots that hold a real token and may be looked at.
    """

    key: Float[Array, "L B K S H"]
    value: Float[Array, "L B K S H"]
    valid: Bool[Array, "B S"]


def create_cache(
    config: ModelConfig | LlamaConfig, batch: int, max_len: int, dtype: jnp.dtype | str
) -> KVCache:
    """Returns an empty cache of `max_len` slots per row."""
    llm = config.llm if isinstance(config, ModelConfig) else config
    shape = (llm.num_layers, batch, llm.num_kv_heads, max_len, llm.head_dim)
    return KVCache(
        key=jnp.zeros(shape, dtype),
        value=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, max_len), bool),
    )


def mark_valid(
    cache: KVCache, write_index: Int[Array, ""], token_mask: Bool[Array, "B T"]
) -> KVCache:
    """Returns the cache with slots write_index + t marked as real where `token_mask` says so."""
    valid = jax.lax.dynamic_update_slice(cache.valid, token_mask, (0, write_index))
    return cache._replace(valid=valid)


def write_layer(
    cache: KVCache,
    layer: Int[Array, ""],
    write_index: Int[Array, ""],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
) -> KVCache:
    """Returns the cache with new keys and values of one layer, which must fit into it."""

    def write(old, new):
        new = einops.rearrange(new.astype(old.dtype), "B T K H -> 1 B K T H")
        return jax.lax.dynamic_update_slice(old, new, (layer, 0, 0, write_index, 0))

    return cache._replace(key=write(cache.key, key), value=write(cache.value, value))


def read_layer(
    cache: KVCache, layer: Int[Array, ""]
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Returns all keys and values of one layer."""

    def read(stored):
        # A change of names only: the compiler merges it into the products that follow.
        one = jax.lax.dynamic_index_in_dim(stored, layer, keepdims=False)
        return einops.rearrange(one, "B K S H -> B S K H")

    return read(cache.key), read(cache.value)
