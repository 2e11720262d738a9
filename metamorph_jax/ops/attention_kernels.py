"""Fused attention kernels of jax that honour segments: Splash on TPU, a Triton one on GPU.

What a kernel cannot do is refused by `backends.py` before it gets here. jax's cuDNN attention is
not among them: it has no segment ids, so packed examples would see each other.
"""

import functools

import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Float, Int

ATTENTION_NAME = "attention"  # of the results that the remat policy `attention` keeps
_BLOCKS = (1024, 512, 384, 256, 128)  # of queries or keys: the first that divides is taken
FUSED_BACKWARD_MAX_LEN = 8192  # its partial gradients are as many as there are blocks of keys


def splash_kernel(num_heads: int, length: int, parts: int = 1, interpret: bool = False):
    """Returns jax's Splash kernel for causal rows, to be given to `splash_attention`.

    Args:
        num_heads: query heads on one device.
        length: of whole rows.
        parts: devices that the queries of a row are split over.
        interpret: run it in Python, on any platform.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block_q, block_kv = block_size(length // parts), block_size(length)
    fused = length <= FUSED_BACKWARD_MAX_LEN
    own = {} if fused else {"block_q_dq": block_q, "block_kv_dq": block_kv}
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=min(block_kv, 512),
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=min(block_kv, 512),
        use_fused_bwd_kernel=fused,
        **own,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
    return splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=ATTENTION_NAME,
        interpret=interpret,
    )


def splash_attention(
    kernel,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """Returns what `scanned_attention` returns; arguments are as there.

    Args:
        kernel: from `splash_kernel`; it knows where in the row the queries are.
        query: N heads.
        key: K heads.
        value: K heads.
        query_segments: 0 is padding.
        key_segments: 0 is padding.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    scaled = (query * query.shape[-1] ** -0.5).astype(query.dtype)
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (scaled, key, value)]
    segments = splash.SegmentIds(q=query_segments, kv=key_segments)
    mixed = jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)
    return _without_padding(mixed, query_segments)


def flash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Returns what `causal_attention` returns, from jax's Triton kernel.

    Args:
        query: N heads.
        key: K heads; the kernel wants one for each query head, so they are repeated.
        value: likewise.
        segment_ids: 0 is padding.
        interpret: run it in Python, on any platform.
    """
    from jax.experimental.pallas.ops.gpu import attention as gpu

    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    mha = functools.partial(gpu.mha, sm_scale=query.shape[-1] ** -0.5, causal=True)
    mixed = mha(query, key, value, segment_ids, interpret=interpret)
    return _without_padding(mixed, segment_ids)


def block_size(length: int) -> int:
    """Returns how many queries or keys Splash takes at once; 0: `length` has no such divisor."""
    return next((size for size in _BLOCKS if length % size == 0), 0)


def _without_padding(
    mixed: Float[Array, "B T N H"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Returns zeros where kernels let padding look at padding."""
    return jnp.where((segment_ids != 0)[:, :, None, None], mixed, 0)
