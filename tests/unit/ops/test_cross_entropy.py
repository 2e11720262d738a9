import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.ops.cross_entropy import chunked_cross_entropy
from tests import tolerances

VOCAB, PADDED = 58, 60


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 7, 16)), dtype)
    head = jnp.asarray(rng.normal(size=(16, PADDED)), dtype)
    targets = rng.integers(0, VOCAB, (2, 7))
    targets[0, :2] = 0, VOCAB - 1
    weights = rng.normal(size=(2, 7)).astype(np.float32)
    return hidden, head, jnp.asarray(targets), weights


def plain(hidden, head, targets):
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    logits = logits[:, :, :VOCAB]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], axis=-1)[:, :, 0]


# One block, exact divisions, an overlap in real entries (7), blocks of padding only (1).
CHUNKS = [100, 60, 30, 16, 11, 7, 1]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_gradients_equal_the_unchunked(chunk):
    hidden, head, targets, weights = inputs()

    def total(loss):
        return lambda hidden, head: jnp.sum(loss(hidden, head, targets) * weights)

    def chunked(hidden, head, targets):
        return chunked_cross_entropy(hidden, head, targets, VOCAB, chunk)

    np.testing.assert_allclose(
        chunked(hidden, head, targets),
        plain(hidden, head, targets),
        rtol=tolerances.FLOAT32_REORDERED,
        atol=tolerances.FLOAT32_REORDERED,
    )
    ours = jax.grad(total(chunked), argnums=(0, 1))(hidden, head)
    theirs = jax.grad(total(plain), argnums=(0, 1))(hidden, head)
    for mine, other in zip(ours, theirs, strict=True):
        error = np.linalg.norm(mine - other) / np.linalg.norm(other)
        assert error < tolerances.FLOAT32_REORDERED_GRADIENT
    assert not np.asarray(ours[1][:, VOCAB:]).any()


def test_padding_of_the_table_does_not_count():
    hidden, head, targets, _ = inputs()
    other = head.at[:, VOCAB:].set(100.0)
    np.testing.assert_array_equal(
        chunked_cross_entropy(hidden, head, targets, VOCAB, 16),
        chunked_cross_entropy(hidden, other, targets, VOCAB, 16),
    )


def test_large_logits_do_not_overflow():
    hidden, head, targets, _ = inputs()
    hidden = hidden * 1000
    loss = chunked_cross_entropy(hidden, head, targets, VOCAB, 16)
    assert np.isfinite(loss).all()
    expected = plain(hidden, head, targets)
    assert expected.max() > 1000
    np.testing.assert_allclose(
        loss, expected, rtol=tolerances.FLOAT32_REORDERED, atol=1000 * tolerances.FLOAT32_REORDERED
    )


def test_bfloat16_sums_in_float32():
    hidden, head, targets, _ = inputs("bfloat16")
    loss = chunked_cross_entropy(hidden, head, targets, VOCAB, 16)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(
        loss, plain(hidden, head, targets), rtol=0, atol=10 * tolerances.FLOAT32_REORDERED
    )
    grads = jax.grad(lambda h, w: jnp.sum(chunked_cross_entropy(h, w, targets, VOCAB, 16)), (0, 1))(
        hidden, head
    )
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]


def test_no_array_holds_all_logits():
    hidden, head, targets, _ = inputs()

    def total(hidden, head):
        return jnp.sum(chunked_cross_entropy(hidden, head, targets, VOCAB, 10))

    text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, head))
    assert f"f32[2,7,{10}]" in text
    assert f"f32[2,7,{PADDED}]" not in text
    assert f"f32[6,2,7,{10}]" not in text
