"""Decoding with the cache against one uncached pass, teacher-forced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.models.cache import create_cache, grow_cache
from metamorph_jax.models.llama import Llama
from metamorph_jax.models.stack import unstack_blocks
from tests import tolerances
from tests.model_helpers import quick_jit, random_params
from tests.tiny import tiny_model

CONFIG = tiny_model().llm
F32 = jnp.dtype("float32")
MODEL = Llama(CONFIG, F32, F32, stacked=False)
STACKED = Llama(CONFIG, F32, F32)
PROMPT_LENGTHS, NUM_NEW = (4, 7, 1), 5
LONGEST = max(PROMPT_LENGTHS)


@functools.partial(jax.jit, static_argnums=1)
def apply(params, method, *args):
    return MODEL.apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def params():
    return unstack_blocks(random_params(tiny_model()))["language_model"]


def sequences(params):
    """Returns embeddings of prompt plus new tokens, [3, 12, D], each row starting at 0."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, LONGEST + NUM_NEW))
    return np.asarray(apply(params, "embed", tokens))


def uncached(params, row, length):
    embeddings = sequences(params)
    positions = np.repeat(np.arange(embeddings.shape[1])[None], 3, axis=0)
    arguments = embeddings, np.ones_like(positions), positions
    hidden = stacked_decode(random_params(tiny_model())["language_model"], *arguments)
    return np.asarray(hidden)[row, :length]


@jax.jit
def stacked_decode(params, *args):
    return STACKED.apply({"params": params}, *args, method="decode")


def left_padded(params):
    """Returns (embeddings, positions, mask) of the prompts, right-aligned."""
    rows = sequences(params)
    embeddings = np.full((3, LONGEST, CONFIG.embed_dim), 1e3, np.float32)  # would be noticed
    positions = np.zeros((3, LONGEST), np.int32)
    mask = np.zeros((3, LONGEST), bool)
    for row, length in enumerate(PROMPT_LENGTHS):
        embeddings[row, LONGEST - length :] = rows[row, :length]
        positions[row, LONGEST - length :] = np.arange(length)
        mask[row, LONGEST - length :] = True
    return embeddings, positions, mask


def test_prompts_of_different_lengths_then_single_tokens(params):
    cache = create_cache(CONFIG, 3, LONGEST + NUM_NEW, "float32")
    embeddings, positions, mask = left_padded(params)
    hidden, cache = apply(params, "decode_cached", embeddings, positions, cache, jnp.array(0), mask)
    steps, rows, lengths = [], sequences(params), np.array(PROMPT_LENGTHS)
    for i in range(NUM_NEW):
        new = rows[np.arange(3), lengths + i][:, None]
        step, cache = apply(
            params, "decode_cached", new, (lengths + i)[:, None], cache, jnp.array(LONGEST + i)
        )
        steps.append(np.asarray(step[:, 0]))
    for row, length in enumerate(PROMPT_LENGTHS):
        expected = uncached(params, row, length + NUM_NEW)
        ours = np.concatenate([hidden[row, LONGEST - length :], np.stack(steps)[:, row]])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED * 5)


def test_inside_a_while_loop(params):
    rows = jnp.asarray(sequences(params))
    length = LONGEST + NUM_NEW

    @quick_jit
    def run(params, rows):
        def step(state):
            i, cache, hidden = state
            new = jax.lax.dynamic_slice_in_dim(rows, i, 1, axis=1)
            positions = jnp.full((3, 1), i)
            out, cache = apply(params, "decode_cached", new, positions, cache, i)
            return i + 1, cache, jax.lax.dynamic_update_slice(hidden, out, (0, i, 0))

        start = (jnp.array(0), create_cache(CONFIG, 3, length, "float32"), jnp.zeros_like(rows))
        return jax.lax.while_loop(lambda state: state[0] < length, step, start)[2]

    hidden = run(params, rows)
    for row in range(3):
        expected = uncached(params, row, length)
        np.testing.assert_allclose(
            hidden[row], expected, rtol=0, atol=tolerances.FLOAT32_REORDERED * 5
        )


def test_padding_is_never_looked_at(params):
    embeddings, positions, mask = left_padded(params)
    other = np.where(mask[:, :, None], embeddings, -7.0)
    results = [
        apply(
            params,
            "decode_cached",
            x,
            positions,
            create_cache(CONFIG, 3, LONGEST, "float32"),
            jnp.array(0),
            mask,
        )[0]
        for x in (embeddings, other)
    ]
    np.testing.assert_array_equal(results[0][mask], results[1][mask])


def test_rows_that_are_done_write_nothing_valid(params):
    cache = create_cache(CONFIG, 3, 4, "float32")
    new = sequences(params)[:, :1]
    done = np.array([[True], [False], [True]])
    _, cache = apply(params, "decode_cached", new, np.zeros((3, 1), int), cache, jnp.array(2), done)
    expected = np.zeros((3, 4), bool)
    expected[[0, 2], 2] = True
    np.testing.assert_array_equal(cache.valid, expected)


def test_cache_dtype_is_kept(params):
    cache = create_cache(tiny_model(), 1, 3, "bfloat16")
    new = sequences(params)[:1, :1]
    _, cache = apply(params, "decode_cached", new, np.zeros((1, 1), int), cache, jnp.array(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.layers)} == {jnp.dtype("bfloat16")}
    one_position = CONFIG.num_kv_heads * CONFIG.head_dim
    for leaf in jax.tree.leaves(cache.layers):
        assert np.count_nonzero(np.asarray(leaf, np.float32)) == one_position
    assert len(cache.layers) == CONFIG.num_layers


def test_a_grown_cache_goes_on(params):
    rows = sequences(params)[:1]
    small = create_cache(CONFIG, 1, 2, "float32")
    positions = np.array([[0, 1]])
    _, small = apply(params, "decode_cached", rows[:, :2], positions, small, jnp.array(0))
    grown = grow_cache(small, 3)
    assert grown.valid.shape == (1, 5)
    hidden, _ = apply(params, "decode_cached", rows[:, 2:3], np.array([[2]]), grown, jnp.array(2))
    np.testing.assert_allclose(
        hidden[0], uncached(params, 0, 3)[2:], rtol=0, atol=tolerances.FLOAT32_REORDERED * 5
    )
