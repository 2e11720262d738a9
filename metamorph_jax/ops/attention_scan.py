"""Causal attention of packed rows whose memory is linear in their length.

Blocks of queries meet blocks of keys one at a time, with a running maximum and sum, so that scores
of one pair of blocks are all that ever exists; the backward pass computes them again. A block of
keys that lies after all queries of a block is never visited. That holds for queries that are only a
part of the row, too: `first` says where in the row they begin.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Float, Int, Shaped

_MASKED_SCORE = -1e30  # finite, so that a block without anything allowed gives no NaN
_BLOCK = 512  # most queries or keys at once


class _Blocks(NamedTuple):
    """Queries, keys and values cut into blocks, heads grouped, and where each stands in the row."""

    query: Float[Array, "blocks B K G queries H"]
    query_ids: Int[Array, "blocks B queries"]
    query_place: Int[Array, "blocks queries"]
    key: Float[Array, "blocks B K keys H"]
    value: Float[Array, "blocks B K keys H"]
    key_ids: Int[Array, "blocks B keys"]
    key_place: Int[Array, "blocks keys"]


@jax.custom_vjp
def scanned_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    first: Int[Array, ""],
) -> Float[Array, "B T N H"]:
    """Returns what `attention` returns under a causal mask of segments; padding gets zeros.

    Args:
        query: of T consecutive places of a row; N heads.
        key: of the whole row; K heads, each shared by N / K consecutive query heads.
        value: likewise.
        query_segments: numbers of the queries' segments; 0 is padding.
        key_segments: numbers of the keys' segments.
        first: place of the first query in the row.
    """
    return _forward(query, key, value, query_segments, key_segments, first)[0]


def _forward(query, key, value, query_segments, key_segments, first):
    blocks = _cut(query, key, value, query_segments, key_segments, first)
    shape = blocks.query.shape[1:]

    def of_queries(index):
        def add_keys(block, carry):
            largest, total, mixed = carry
            scores = _scores(blocks, index, block)
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = jnp.where(scores > _MASKED_SCORE, jnp.exp(scores - new_largest[..., None]), 0)
            shrink = jnp.exp(largest - new_largest)
            part = _mix("BKGts,BKsH->BKGtH", weights.astype(value.dtype), blocks.value[block])
            total = total * shrink + jnp.sum(weights, axis=-1)
            return new_largest, total, mixed * shrink[..., None] + part

        start = (
            jnp.full(shape[:-1], _MASKED_SCORE, jnp.float32),
            jnp.zeros(shape[:-1], jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )
        end = _num_key_blocks(blocks, index)
        largest, total, mixed = jax.lax.fori_loop(0, end, add_keys, start)
        total = jnp.where(total > 0, total, 1.0)  # nothing allowed: mixed is zero
        return (mixed / total[..., None]).astype(query.dtype), largest + jnp.log(total)

    mixed, log_total = jax.lax.map(of_queries, jnp.arange(blocks.query.shape[0]))
    out = _join_queries(mixed, query.shape)
    return out, (query, key, value, query_segments, key_segments, first, out, log_total)


def _backward(saved, cotangent):
    query, key, value, query_segments, key_segments, first, out, log_total = saved
    blocks = _cut(query, key, value, query_segments, key_segments, first)
    slopes = _cut_queries(cotangent, key.shape[2])
    outs = _cut_queries(out, key.shape[2])
    scale = query.shape[-1] ** -0.5

    def of_queries(carry, index):
        slope = slopes[index]
        # Of the softmax: the part that keeps the sum of the weights at one.
        shift = jnp.sum(slope.astype(jnp.float32) * outs[index].astype(jnp.float32), axis=-1)

        def add_keys(block, carry):
            grad_query, grad_key, grad_value = carry
            scores = _scores(blocks, index, block)
            weights = jnp.exp(scores - log_total[index][..., None])
            weights = jnp.where(scores > _MASKED_SCORE, weights, 0.0)
            part = _mix("BKGts,BKGtH->BKsH", weights.astype(slope.dtype), slope)
            grad_value = grad_value.at[block].add(part)
            back = _mix("BKGtH,BKsH->BKGts", slope, blocks.value[block])
            bend = (weights * (back - shift[..., None]) * scale).astype(query.dtype)
            grad_query += _mix("BKGts,BKsH->BKGtH", bend, blocks.key[block])
            grad_key = grad_key.at[block].add(_mix("BKGts,BKGtH->BKsH", bend, blocks.query[index]))
            return grad_query, grad_key, grad_value

        start = (jnp.zeros(slope.shape, jnp.float32), *carry)
        end = _num_key_blocks(blocks, index)
        grad_query, *carry = jax.lax.fori_loop(0, end, add_keys, start)
        return tuple(carry), grad_query

    zeros = jnp.zeros(blocks.key.shape, jnp.float32)
    numbers = jnp.arange(blocks.query.shape[0])
    (grad_key, grad_value), grad_query = jax.lax.scan(of_queries, (zeros, zeros), numbers)
    return (
        _join_queries(grad_query, query.shape).astype(query.dtype),
        _join_keys(grad_key, key.shape).astype(key.dtype),
        _join_keys(grad_value, value.shape).astype(value.dtype),
        None,
        None,
        None,
    )


scanned_attention.defvjp(_forward, _backward)


def _mix(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _scores(blocks: _Blocks, index, block):
    """Returns the float32 scores of a block of queries and a block of keys."""
    scores = _mix("BKGtH,BKsH->BKGts", blocks.query[index], blocks.key[block])
    scores = scores * blocks.query.shape[-1] ** -0.5
    query_ids, key_ids = blocks.query_ids[index], blocks.key_ids[block]
    order = blocks.query_place[index][:, None] >= blocks.key_place[block][None, :]
    same = query_ids[:, :, None] == key_ids[:, None, :]
    allowed = order[None] & same & (key_ids[:, None, :] != 0)
    return jnp.where(allowed[:, None, None], scores, _MASKED_SCORE)


def _num_key_blocks(blocks: _Blocks, index):
    """Returns how many blocks of keys begin no later than the block's last query."""
    last = blocks.query_place[index, -1]
    return jnp.minimum(last // blocks.key_place.shape[1] + 1, blocks.key.shape[0])


def _cut(query, key, value, query_segments, key_segments, first) -> _Blocks:
    queries, keys = min(_BLOCK, query.shape[1]), min(_BLOCK, key.shape[1])
    query_ids = _padded(query_segments, queries)
    key_ids = _padded(key_segments, keys)
    return _Blocks(
        _cut_queries(query, key.shape[2]),
        einops.rearrange(query_ids, "B (n t) -> n B t", t=queries),
        first + jnp.arange(query_ids.shape[1]).reshape(-1, queries),
        *(
            einops.rearrange(_padded(x, keys), "B (n s) K H -> n B K s H", s=keys)
            for x in (key, value)
        ),
        einops.rearrange(key_ids, "B (n s) -> n B s", s=keys),
        jnp.arange(key_ids.shape[1]).reshape(-1, keys),
    )


def _cut_queries(x: Float[Array, "B T N H"], num_kv_heads: int) -> Float[Array, "..."]:
    size = min(_BLOCK, x.shape[1])
    x = _padded(x, size)
    return einops.rearrange(x, "B (n t) (K G) H -> n B K G t H", t=size, K=num_kv_heads)


def _join_queries(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "B T N H"]:
    return einops.rearrange(x, "n B K G t H -> B (n t) (K G) H")[:, : shape[1]]


def _join_keys(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "B S K H"]:
    return einops.rearrange(x, "n B K s H -> B (n s) K H")[:, : shape[1]]


def _padded(x: Shaped[Array, "B T ..."], size: int) -> Shaped[Array, "B padded ..."]:
    """Returns `x` with zeros behind it, up to a multiple of `size` places."""
    wide = [(0, 0)] * x.ndim
    wide[1] = (0, -x.shape[1] % size)
    return jnp.pad(x, wide)
