import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metamorph_jax.ops.attention import attention, causal_attention, causal_block_size
from metamorph_jax.ops.masks import causal_segment_mask
from tests import tolerances


def random_inputs(num_heads=4, num_kv_heads=2, queries=3, keys=5, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, queries, num_heads, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, keys, num_kv_heads, 8)).astype(np.float32)
    mask = rng.random((2, queries, keys)) < 0.6
    mask[:, :, 0] = True
    return query, key, value, mask


def test_equals_torch_with_grouped_heads():
    query, key, value, mask = random_inputs()
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.moveaxis(x, 2, 1)) for x in (query, key, value)),
        attn_mask=torch.tensor(mask)[:, None],
        enable_gqa=True,
    )
    theirs = np.moveaxis(theirs.numpy(), 1, 2)
    ours = attention(query, key, value, mask)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_no_mask_is_a_full_mask():
    query, key, value, mask = random_inputs()
    everywhere = attention(query, key, value, np.ones_like(mask))
    np.testing.assert_array_equal(attention(query, key, value), everywhere)


def test_row_with_nothing_allowed_is_zero_with_finite_gradients():
    query, key, value, mask = random_inputs()
    mask[0, 1] = False
    out = attention(query, key, value, mask)
    assert not np.asarray(out[0, 1]).any()
    grads = jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v, mask) ** 2), argnums=(0, 1, 2))(
        query, key, value
    )
    assert all(np.isfinite(g).all() for g in grads)
    assert not np.asarray(grads[0][0, 1]).any()


def test_masked_keys_change_no_bit():
    query, key, value, mask = random_inputs()
    mask[:, :, 3] = False
    before = attention(query, key, value, mask)
    key[:, 3], value[:, 3] = 1e4, -1e4
    np.testing.assert_array_equal(attention(query, key, value, mask), before)


def test_scores_are_float32_in_bfloat16():
    # A score of 257 needs 9 bits; bfloat16 would round it to 256 and make the two keys equal.
    query = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    key = jnp.array([[[[256.0, 1.0]], [[256.0, 0.0]]]], jnp.bfloat16)
    value = jnp.array([[[[1.0, 0.0]], [[0.0, 1.0]]]], jnp.bfloat16)
    out = np.asarray(attention(query, key, value), np.float32)[0, 0, 0]
    expected = 1 / (1 + np.exp(-(2**-0.5)))
    np.testing.assert_allclose(out, [expected, 1 - expected], rtol=0, atol=tolerances.BFLOAT16 / 10)
    assert attention(query, key, value).dtype == jnp.bfloat16


LENGTHS = (100, 128, 300, 1100)  # one block, exactly one, a last one that is shorter, as many as go


def packed_rows(length, seed=0):
    """Returns queries, keys, values and the segments of a row with two of them, and of one row."""
    rng = np.random.default_rng(seed)
    query, key, value = (
        rng.normal(size=(2, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2)
    )
    segments = np.ones((2, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[:, -5:] = 0
    return query, key, value, segments


def in_blocks(query, key, value, segments):
    return causal_attention(query, key, value, segments)


def whole(query, key, value, segments):
    return attention(query, key, value, causal_segment_mask(segments))


@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_equal_the_whole_and_so_do_gradients(length):
    *inputs, segments = packed_rows(length)
    weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def run(function):
        def loss(*inputs):
            out = function(*inputs, segments)
            return jnp.vdot(out, weight), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)

    (grads, out), (expected_grads, expected) = run(in_blocks), run(whole)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < tolerances.FLOAT32_REORDERED_GRADIENT


def test_another_segment_changes_no_bit_of_a_blocked_row():
    query, key, value, segments = packed_rows(600)
    in_second = (segments == 2)[:, :, None, None]
    gradient = jax.grad(
        lambda *inputs: jnp.sum(jnp.where(in_second, in_blocks(*inputs, segments), 0.0) ** 2),
        argnums=(0, 1, 2),
    )
    before, grads = in_blocks(query, key, value, segments), gradient(query, key, value)
    other = segments[0] == 1
    for array in (query, key, value):
        array[0, other] = np.random.default_rng(2).normal(size=array[0, other].shape)
    after, new_grads = in_blocks(query, key, value, segments), gradient(query, key, value)
    kept = segments[0] == 2
    np.testing.assert_array_equal(after[0, kept], before[0, kept])
    assert np.any(after[0, other] != before[0, other])
    for new, old in zip(new_grads, grads, strict=True):
        np.testing.assert_array_equal(new[0, kept], old[0, kept])
        assert not np.asarray(new[0, other]).any()


def test_blocks_are_few_and_not_small():
    sizes = {1: 1, 100: 100, 256: 128, 1024: 128, 1100: 138, 4096: 512}
    assert {length: causal_block_size(length) for length in sizes} == sizes


def test_the_backward_pass_keeps_no_scores():
    query, key, value, segments = packed_rows(1024)
    _, backward = jax.vjp(lambda *inputs: in_blocks(*inputs, segments), query, key, value)
    largest = max(leaf.size for leaf in jax.tree.leaves(backward))
    assert largest <= query.size  # no scores, and no mask
