"""Keys and values of positions that were already decoded.

The cache is an explicit pytree that the caller owns, passes in and gets back; the decoding loop is
in `decoding/`. A slot is a place in the cache; it need not equal the position, since prompts may
be padded on either side.
"""

from typing import NamedTuple

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

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    valid: Bool[Array, "B S"]


def create_cache(
    config: ModelConfig | LlamaConfig, batch: int, max_len: int, dtype: jnp.dtype | str
) -> KVCache:
    """Returns an empty cache of `max_len` slots per row."""
    llm = config.llm if isinstance(config, ModelConfig) else config
    shape = (llm.num_layers, batch, max_len, llm.num_kv_heads, llm.head_dim)
    return KVCache(
        key=jnp.zeros(shape, dtype),
        value=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, max_len), bool),
    )


def mark_valid(
    cache: KVCache, write_index: Int[Array, "B"], token_mask: Bool[Array, "B T"]
) -> KVCache:
    """Returns the cache with slots write_index + t marked as real where `token_mask` says so."""
    rows, slots = _places(write_index, token_mask.shape[1])
    return cache._replace(valid=cache.valid.at[rows, slots].set(token_mask, mode="drop"))


def write_layer(
    cache: KVCache,
    layer: Int[Array, ""],
    write_index: Int[Array, "B"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
) -> KVCache:
    """Returns the cache with new keys and values of one layer; past the end they are dropped."""
    rows, slots = _places(write_index, key.shape[1])
    new_key = cache.key.at[layer, rows, slots].set(key.astype(cache.key.dtype), mode="drop")
    new_value = cache.value.at[layer, rows, slots].set(value.astype(cache.value.dtype), mode="drop")
    return cache._replace(key=new_key, value=new_value)


def read_layer(
    cache: KVCache, layer: Int[Array, ""]
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Returns all keys and values of one layer."""
    key = jax.lax.dynamic_index_in_dim(cache.key, layer, keepdims=False)
    value = jax.lax.dynamic_index_in_dim(cache.value, layer, keepdims=False)
    return key, value


def _places(write_index: Int[Array, "B"], num_new: int):
    rows = jnp.arange(write_index.shape[0])[:, None]
    return rows, write_index[:, None] + jnp.arange(num_new)[None, :]
