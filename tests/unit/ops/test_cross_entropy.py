import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.ops import cross_entropy
from metamorph_jax.ops.cross_entropy import TableLayout, chunked_cross_entropy
from tests import tolerances

TOKENS, VOCAB, PADDED = 14, 58, 60
ALL = jnp.ones(TOKENS, bool)


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(TOKENS, 16)), dtype)
    head = jnp.asarray(rng.normal(size=(16, PADDED)), dtype)
    targets = rng.integers(0, VOCAB, TOKENS)
    targets[:2] = 0, VOCAB - 1
    weights = rng.normal(size=TOKENS).astype(np.float32)
    return hidden, head, jnp.asarray(targets), weights


def plain(hidden, head, targets):
    logits = jnp.einsum("MD,DV->MV", hidden, head, preferred_element_type=jnp.float32)
    logits = logits[:, :VOCAB]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=-1)[:, 0]


def assert_equal_to_plain(mask, chunk):
    hidden, head, targets, weights = inputs()

    def total(loss):
        return lambda hidden, head: jnp.sum(loss(hidden, head, targets) * weights)

    def chunked(hidden, head, targets):
        return chunked_cross_entropy(
            hidden, head, targets, jnp.asarray(mask), TableLayout(VOCAB, chunk)
        )

    def expected(hidden, head, targets):
        return jnp.where(mask, plain(hidden, head, targets), 0.0)

    np.testing.assert_allclose(
        chunked(hidden, head, targets),
        expected(hidden, head, targets),
        rtol=tolerances.FLOAT32_REORDERED,
        atol=tolerances.FLOAT32_REORDERED,
    )
    ours = jax.grad(total(chunked), argnums=(0, 1))(hidden, head)
    theirs = jax.grad(total(expected), argnums=(0, 1))(hidden, head)
    for mine, other in zip(ours, theirs, strict=True):
        error = np.linalg.norm(mine - other) / max(np.linalg.norm(other), 1e-9)
        assert error < tolerances.FLOAT32_REORDERED_GRADIENT
    assert not np.asarray(ours[1][:, VOCAB:]).any()
    assert not np.asarray(ours[0])[~np.asarray(mask)].any()


# One block, exact divisions, an overlap in real entries (7), blocks of padding only (1).
@pytest.mark.parametrize("chunk", [100, 60, 30, 16, 11, 7, 1])
def test_values_and_gradients_equal_the_unchunked(chunk):
    assert_equal_to_plain(np.ones(TOKENS, bool), chunk)


# Exact division, a last block that is filled up, one token at a time.
@pytest.mark.parametrize("size", [7, 4, 1])
@pytest.mark.parametrize("supervised", [0, 1, 4, 5, 13, 14])
def test_only_supervised_tokens_count_in_blocks_of_tokens(size, supervised, monkeypatch):
    monkeypatch.setattr(cross_entropy, "TOKENS_PER_BLOCK", size)
    mask = np.zeros(TOKENS, bool)
    mask[np.random.default_rng(supervised).permutation(TOKENS)[:supervised]] = True
    assert_equal_to_plain(mask, 16)


@pytest.mark.parametrize(("supervised", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (14, 4)])
def test_blocks_without_supervised_tokens_are_left_out(supervised, blocks):
    order = cross_entropy._supervised_first(jnp.arange(TOKENS) < supervised)
    order = order._replace(num_blocks=4, tokens=jnp.arange(16), counts=jnp.arange(16) < supervised)
    count = cross_entropy._for_token_blocks(order, lambda first, size, n: n + 1, 0)
    assert count == blocks


def test_padding_of_the_table_does_not_count():
    hidden, head, targets, _ = inputs()
    other = head.at[:, VOCAB:].set(100.0)
    np.testing.assert_array_equal(
        chunked_cross_entropy(hidden, head, targets, ALL, TableLayout(VOCAB, 16)),
        chunked_cross_entropy(hidden, other, targets, ALL, TableLayout(VOCAB, 16)),
    )


def test_large_logits_do_not_overflow():
    hidden, head, targets, _ = inputs()
    hidden = hidden * 1000
    loss = chunked_cross_entropy(hidden, head, targets, ALL, TableLayout(VOCAB, 16))
    assert np.isfinite(loss).all()
    expected = plain(hidden, head, targets)
    assert expected.max() > 1000
    np.testing.assert_allclose(
        loss, expected, rtol=tolerances.FLOAT32_REORDERED, atol=1000 * tolerances.FLOAT32_REORDERED
    )


def test_bfloat16_sums_in_float32():
    hidden, head, targets, _ = inputs("bfloat16")

    def loss(hidden, head):
        return chunked_cross_entropy(hidden, head, targets, ALL, TableLayout(VOCAB, 16))

    losses = loss(hidden, head)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(
        losses, plain(hidden, head, targets), rtol=0, atol=10 * tolerances.FLOAT32_REORDERED
    )
    grads = jax.grad(lambda h, w: jnp.sum(loss(h, w)), (0, 1))(hidden, head)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]


def test_no_array_holds_all_logits(monkeypatch):
    monkeypatch.setattr(cross_entropy, "TOKENS_PER_BLOCK", 7)
    hidden, head, targets, _ = inputs()

    def total(hidden, head):
        return jnp.sum(chunked_cross_entropy(hidden, head, targets, ALL, TableLayout(VOCAB, 10)))

    text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, head))
    assert "f32[7,10]" in text
    for shape in (f"[{TOKENS},{PADDED}]", f"[7,{PADDED}]", f"[{TOKENS},10]", "[6,7,10]"):
        assert f"f32{shape}" not in text
