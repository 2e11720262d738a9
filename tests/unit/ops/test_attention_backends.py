"""Every backend equals the reference on packed rows, and none lets a segment see another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.ops.attention import attention
from metamorph_jax.ops.attention_kernels import flash_attention, splash_attention, splash_kernel
from metamorph_jax.ops.attention_scan import scanned_attention
from metamorph_jax.ops.backends import choose_backend
from metamorph_jax.ops.masks import causal_segment_mask
from tests import tolerances


def scan(query, key, value, segments):
    return scanned_attention(query, key, value, segments, segments, jnp.int32(0))


def splash(query, key, value, segments):
    kernel = splash_kernel(query.shape[2], query.shape[1], interpret=True)
    return splash_attention(kernel, query, key, value, segments, segments)


def flash(query, key, value, segments):
    return flash_attention(query, key, value, segments, interpret=True)


def reference(query, key, value, segments):
    return attention(query, key, value, causal_segment_mask(segments))


# Length and head dimension: kernels ask for multiples of 128; the scan's last block is cut short.
BACKENDS = {"scan": (scan, 1100, 8), "splash": (splash, 256, 128), "flash": (flash, 256, 64)}


def packed_rows(length, head_dim, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(size=(2, length, heads, head_dim)).astype(np.float32) for heads in (4, 2, 2)
    ]
    segments = np.ones((2, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[1, length // 2 :] = 2
    segments[:, -5:] = 0
    return *arrays, segments


def gradients(function, inputs, segments, weight):
    def loss(*inputs):
        out = function(*inputs, segments)
        return jnp.vdot(out, weight), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)


@pytest.mark.parametrize("name", BACKENDS)
def test_equals_the_reference_and_so_do_gradients(name):
    function, length, head_dim = BACKENDS[name]
    *inputs, segments = packed_rows(length, head_dim)
    weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)
    grads, out = gradients(function, inputs, segments, weight)
    expected_grads, expected = gradients(reference, inputs, segments, weight)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2 * tolerances.FLOAT32_REORDERED)
    assert not np.asarray(out)[segments == 0].any()
    for ours, theirs in zip(grads, expected_grads, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < tolerances.FLOAT32_REORDERED_GRADIENT


@pytest.mark.parametrize("name", BACKENDS)
def test_another_segment_changes_no_bit(name):
    function, length, head_dim = BACKENDS[name]
    *inputs, segments = packed_rows(length, head_dim)
    kept, other = segments == 2, segments == 1
    weight = np.where(kept[:, :, None, None], np.float32(1), np.float32(0))
    weight = np.broadcast_to(weight, inputs[0].shape)
    grads, before = gradients(function, inputs, segments, weight)
    # Copies: what was dispatched above may not have read its inputs yet.
    changed = [array.copy() for array in inputs]
    for array in changed:
        array[other] = np.random.default_rng(2).normal(size=array[other].shape)
    new_grads, after = gradients(function, changed, segments, weight)
    np.testing.assert_array_equal(np.asarray(after)[kept], np.asarray(before)[kept])
    assert np.any(np.asarray(after)[other] != np.asarray(before)[other])
    for new, old in zip(new_grads, grads, strict=True):
        np.testing.assert_array_equal(np.asarray(new)[kept], np.asarray(old)[kept])
        assert not np.asarray(new)[other].any()


def test_the_scan_takes_a_part_of_the_queries():
    *inputs, segments = packed_rows(1100, 8)
    whole = scan(*inputs, segments)
    part = scanned_attention(
        inputs[0][:, 700:], *inputs[1:], segments[:, 700:], segments, jnp.int32(700)
    )
    np.testing.assert_allclose(part, whole[:, 700:], rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_the_scan_keeps_memory_that_is_linear_in_the_length():
    def temporary_bytes(length):
        shapes = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (4, 2, 2)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        loss = lambda *inputs: jnp.sum(scan(*inputs) ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(16384) < 5 * temporary_bytes(4096)


def choose(wanted, platform, head_dim=128, length=4096, num_context=1):
    return choose_backend(
        wanted, platform, head_dim=head_dim, length=length, num_context=num_context
    )


def test_auto_goes_by_the_platform_and_says_why():
    assert choose("auto", "tpu").name == "splash"
    assert choose("auto", "cpu") == ("chunked", "no fused kernel runs on cpu")
    assert choose("auto", "cuda").name == "chunked"
    small_heads = choose("auto", "tpu", head_dim=64)
    assert small_heads.name == "chunked" and "head_dim=64" in small_heads.reason
    assert choose("auto", "tpu", length=1000).name == "chunked"
    assert choose("auto", "tpu", length=32768, num_context=8).name == "splash"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("splash", "cpu"), "for TPUs, and the devices are cpu"),
        (("flash", "tpu"), "for GPUs, and the devices are tpu"),
        (("splash", "tpu", 64), "head_dim=64"),
        (("splash", "tpu", 128, 4096, 3), "context axis"),
        (("flash", "gpu", 128, 4096, 2), "context axis splits them in 2"),
        (("flash", "gpu", 128, 1000), "1000 positions"),
    ],
)
def test_a_backend_that_cannot_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        choose(*arguments)
