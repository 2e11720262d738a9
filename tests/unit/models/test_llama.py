import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.models.llama import Llama
from tests import tolerances
from tests.model_helpers import quick_jit, random_params, relative_error
from tests.tiny import tiny_model

CONFIG = tiny_model().llm
F32 = jnp.dtype("float32")
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0]])
POSITIONS = np.array([[*range(5), *range(6), 0]])


def create_params(config=CONFIG):
    return random_params(tiny_model(llm=config))["language_model"]


def call(config, params, method, *args):
    return Llama(config, F32, F32).apply({"params": params}, *args, method=method)


def decode(params, tokens, config=CONFIG):
    embeddings = call(config, params, "embed", tokens)
    return call(config, params, "decode", embeddings, SEGMENTS, POSITIONS)


run_decode = quick_jit(decode)


@pytest.fixture(scope="module")
def params():
    return create_params()


def random_tokens(seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (1, 12))


def test_segments_do_not_see_each_other(params):
    tokens = random_tokens()
    before = np.asarray(run_decode(params, tokens))
    tokens[:, :5] = (tokens[:, :5] + 7) % CONFIG.vocab_size
    after = np.asarray(run_decode(params, tokens))
    assert np.abs(after[:, :5] - before[:, :5]).min(axis=-1).min() > 0
    np.testing.assert_array_equal(after[:, 5:11], before[:, 5:11])


def test_no_position_sees_a_later_one(params):
    tokens = random_tokens()
    before = np.asarray(run_decode(params, tokens))
    tokens[:, 8] = (tokens[:, 8] + 1) % CONFIG.vocab_size
    after = np.asarray(run_decode(params, tokens))
    np.testing.assert_array_equal(after[:, :8], before[:, :8])
    assert (np.abs(after[:, 8:11] - before[:, 8:11]).max(axis=-1) > 0).all()


def test_padding_is_finite_and_has_finite_gradients(params):
    tokens = random_tokens()
    hidden = run_decode(params, tokens)
    assert np.isfinite(hidden).all()
    grads = quick_jit(jax.grad(lambda p: jnp.sum(decode(p, tokens)[:, :11] ** 2)))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_padded_logits_cannot_win(params):
    hidden = run_decode(params, random_tokens())
    logits = np.asarray(call(CONFIG, params, "logits", hidden))
    assert logits.shape[-1] == CONFIG.padded_vocab_size > CONFIG.vocab_size
    assert logits.dtype == np.float32
    assert (logits[..., CONFIG.vocab_size :] <= -1e9).all()
    assert np.abs(logits[..., : CONFIG.vocab_size]).max() < 100
    table = params["lm_head"]["kernel"]
    np.testing.assert_allclose(
        logits[..., : CONFIG.vocab_size],
        (np.asarray(hidden) @ table)[..., : CONFIG.vocab_size],
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )


def test_tied_head_is_the_input_table():
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = create_params(config)
    assert "lm_head" not in params
    hidden = quick_jit(lambda p: decode(p, random_tokens(), config))(params)
    logits = np.asarray(call(config, params, "logits", hidden))
    table = np.asarray(params["embed_tokens"]["embedding"])
    np.testing.assert_allclose(
        logits[..., : config.vocab_size],
        (np.asarray(hidden) @ table.T)[..., : config.vocab_size],
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )


@functools.cache
def gradients(changes=()):
    """Returns (gradients, hidden states) of a loss through the logits."""
    config = dataclasses.replace(CONFIG, **dict(changes))

    def loss(params):
        hidden = decode(params, random_tokens(), config)
        logits = call(config, params, "logits", hidden)[:, :11, : CONFIG.vocab_size]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), hidden[:, :11]

    return quick_jit(jax.grad(loss, has_aux=True))(create_params())


@pytest.mark.parametrize(
    "changes",
    [{"scan_unroll": 2}, {"remat": "full"}, {"remat": "dots"}, {"remat": "full", "scan_unroll": 2}],
    ids=str,
)
def test_loop_and_recomputation_change_nothing(changes):
    (expected, expected_hidden), (ours, hidden) = gradients(), gradients(tuple(changes.items()))
    np.testing.assert_allclose(hidden, expected_hidden, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    for theirs, mine in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        assert np.abs(theirs).max() > 0
        assert relative_error(mine, theirs) < tolerances.FLOAT32_REORDERED_GRADIENT


def test_recomputation_is_in_the_program(params):
    tokens = random_tokens()
    for remat, expected in (("none", False), ("full", True), ("dots", True)):
        config = dataclasses.replace(CONFIG, remat=remat)
        program = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(decode(p, tokens, config))))(params)  # noqa: B023
        assert ("checkpoint" in str(program) or "remat" in str(program)) == expected


def test_bfloat16_is_close_and_keeps_its_dtype(params):
    tokens = random_tokens()
    model = Llama(CONFIG, jnp.dtype("bfloat16"), F32)

    @quick_jit
    def run(params):
        def call(method, *args):
            return model.apply({"params": params}, *args, method=method)

        hidden = call("decode", call("embed", tokens), SEGMENTS, POSITIONS)
        return hidden, call("logits", hidden)

    hidden, logits = run(params)
    assert hidden.dtype == jnp.bfloat16
    exact = np.asarray(run_decode(params, tokens))
    size = np.abs(exact[:, :11]).max()
    np.testing.assert_allclose(
        np.asarray(hidden, np.float32)[:, :11],
        exact[:, :11],
        rtol=0,
        atol=tolerances.BFLOAT16 * size,
    )
    assert logits.dtype == jnp.float32
