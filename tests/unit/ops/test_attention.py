import jax
import jax.numpy as jnp
import numpy as np
import torch

from metamorph_jax.ops.attention import attention
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
