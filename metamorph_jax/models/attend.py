"""The decoder's attention over packed rows, laid out over the mesh: one function for all backends.

Plain array code is left to the compiler, which splits it as activations are split. Kernels, and
rows whose positions lie on several devices (`context`), run under `shard_map`: each device has some
of the queries and gathers the keys and values of the whole row.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from metamorph_jax.ops.attention import attention, causal_attention
from metamorph_jax.ops.attention_kernels import (
    ATTENTION_NAME,
    flash_attention,
    splash_attention,
    splash_kernel,
)
from metamorph_jax.ops.attention_scan import scanned_attention
from metamorph_jax.ops.masks import causal_segment_mask
from metamorph_jax.sharding.rules import DEFAULT_RULES, spec_for
from metamorph_jax.typing import Array, Float, Int

_CONTEXT = "context"  # the mesh axis that positions are split over
SCAN_ABOVE = 8192  # positions; up to there, eight blocks with all scores of each fit and are faster
_QUERY = ("batch", "length", "heads", "head_dim")
_KEY = ("batch", "length", "kv_heads", "head_dim")


def attend(
    backend: str,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Returns causal attention within each segment; padding gets zeros.

    Args:
        backend: see `ops/backends.py`; `auto` that nobody has resolved is `chunked`.
        query: N heads.
        key: K heads; consecutive N / K query heads share one.
        value: likewise.
        segment_ids: as in `Batch`.
        interpret: run kernels in Python, as tests do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    length = query.shape[1]
    if backend == "xla":
        mixed = attention(query, key, value, causal_segment_mask(segment_ids))
        return checkpoint_name(mixed, ATTENTION_NAME)
    num_context = 1 if mesh.empty or length % mesh.shape[_CONTEXT] else mesh.shape[_CONTEXT]
    is_plain = backend in ("auto", "chunked")
    if is_plain and num_context == 1 and length <= SCAN_ABOVE:
        mixed = causal_attention(query, key, value, segment_ids)
        return checkpoint_name(mixed, ATTENTION_NAME)
    key, value = _with_enough_heads(mesh, query.shape[2], key, value)
    if backend == "splash":
        return _splash(mesh, num_context, query, key, value, segment_ids, interpret)
    local = _flash(interpret) if backend == "flash" else _scan
    mixed = _on_each_device(mesh, num_context, local, query, key, value, segment_ids)
    return checkpoint_name(mixed, ATTENTION_NAME)


def _scan(query, key, value, query_segments, key_segments, first):
    return scanned_attention(query, key, value, query_segments, key_segments, first)


def _flash(interpret: bool):
    def local(query, key, value, query_segments, key_segments, first):
        return flash_attention(query, key, value, query_segments, interpret)

    return local


def _splash(mesh, num_context, query, key, value, segment_ids, interpret):
    """Returns Splash's result; each part of a row has a kernel that knows which part it is."""
    names, shape = _QUERY, query.shape
    heads = shape[2]
    if not mesh.empty:
        spec = spec_for(names, shape, mesh.shape, DEFAULT_RULES.activations)
        heads = NamedSharding(mesh, spec).shard_shape(shape)[2]
    kernel = splash_kernel(heads, shape[1], num_context, interpret)

    def local(query, key, value, query_segments, key_segments, first, kernel=kernel):
        return splash_attention(kernel, query, key, value, query_segments, key_segments)

    if num_context == 1:
        return _on_each_device(mesh, 1, local, query, key, value, segment_ids)
    specs = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, _CONTEXT)))
    extra = ((kernel, specs),)
    return _on_each_device(mesh, num_context, local, query, key, value, segment_ids, extra)


def _on_each_device(mesh, num_context, local, query, key, value, segment_ids, extra=()):
    """Returns `local(query, key, value, query_segments, key_segments, first, *extra)`, sharded.

    Args:
        mesh: in force.
        num_context: devices that the positions of a row are split over.
        local: what a device does with its queries and whole rows of keys.
        query: and the rest, as for `attend`.
        key: see there.
        value: see there.
        segment_ids: see there.
        extra: pairs of an argument and its specs.
    """
    if mesh.empty or mesh.size == 1:
        zero = jnp.zeros((), jnp.int32)
        more = [argument for argument, _ in extra]
        return local(query, key, value, segment_ids, segment_ids, zero, *more)

    def spec(names, array):
        return spec_for(names, array.shape, mesh.shape, DEFAULT_RULES.activations)

    def of_device(query, key, value, ids, *more):
        first, all_ids = jnp.zeros((), jnp.int32), ids
        if num_context > 1:
            first = jax.lax.axis_index(_CONTEXT) * query.shape[1]
            # Its transpose scatters the sums of the gradients back to where positions live.
            key, value, all_ids = (
                jax.lax.all_gather(x, _CONTEXT, axis=1, tiled=True) for x in (key, value, ids)
            )
        return local(query, key, value, ids, all_ids, first, *more)

    in_specs = (
        spec(_QUERY, query),
        spec(_KEY, key),
        spec(_KEY, value),
        spec(_QUERY[:2], segment_ids),
        *(specs for _, specs in extra),
    )
    run = jax.shard_map(
        of_device, mesh=mesh, in_specs=in_specs, out_specs=spec(_QUERY, query), check_vma=False
    )
    return run(query, key, value, segment_ids, *(argument for argument, _ in extra))


def _with_enough_heads(mesh: AbstractMesh, num_heads: int, *arrays):
    """Returns keys and values, repeated so that each device of `tensor` has those of its queries.

    Without, 8 key/value heads on 16 devices would have to be everywhere while query heads are not.
    """
    devices = 1 if mesh.empty else mesh.shape["tensor"]
    num_kv_heads = arrays[0].shape[2]
    repeats = devices // math.gcd(devices, num_kv_heads)
    if num_heads % devices or repeats == 1:
        return arrays
    return tuple(jnp.repeat(x, repeats, axis=2) for x in arrays)
