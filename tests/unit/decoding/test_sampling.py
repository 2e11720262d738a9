"""Which token follows: the likeliest, or a draw that depends on its own row and step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.decoding.sampling import GREEDY, choose, create_choice, nucleus

LOGITS = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) * 2


def draw(logits, temperature=1.0, top_p=1.0, seed=0, rows=None, step=0):
    rows = jnp.arange(len(logits)) if rows is None else jnp.asarray(rows)
    choice = create_choice(temperature, top_p, seed, rows)
    return np.asarray(choose(jnp.asarray(logits), choice, jnp.int32(step)))


def test_temperature_zero_is_greedy():
    assert create_choice(0.0, 0.5, 3, jnp.arange(6)) is GREEDY
    np.testing.assert_array_equal(draw(LOGITS, temperature=0.0), LOGITS.argmax(axis=-1))


def test_low_temperature_becomes_greedy():
    for step in range(5):
        np.testing.assert_array_equal(draw(LOGITS, 1e-3, step=step), LOGITS.argmax(axis=-1))


def test_draws_repeat_and_change_with_seed_step_and_row():
    same = np.repeat(LOGITS[:1], 200, axis=0)
    first = draw(same, 2.0)
    np.testing.assert_array_equal(first, draw(same, 2.0))
    for other in (draw(same, 2.0, seed=1), draw(same, 2.0, step=1), first[::-1]):
        assert (first != other).mean() > 0.5


def test_a_row_does_not_depend_on_its_neighbours():
    together = draw(LOGITS, 1.5, 0.9, rows=range(6), step=4)
    for row in range(6):
        alone = draw(LOGITS[row : row + 1], 1.5, 0.9, rows=[row], step=4)
        assert alone[0] == together[row]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_frequencies(temperature, top_p):
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    wanted = np.exp(logits / temperature)
    wanted /= wanted.sum()
    if top_p < 1:
        wanted[3] = 0  # 0.5 + 0.25 + 0.15 reaches 0.8
        wanted /= wanted.sum()
    count = 20_000
    drawn = draw(np.repeat(logits[None], count, axis=0), temperature, top_p)
    found = np.bincount(drawn, minlength=4) / count
    # Four standard deviations of a binomial share.
    assert (np.abs(found - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / count)).all()


def test_forbidden_tokens_are_never_drawn():
    logits = np.where(np.arange(50) % 7 == 3, LOGITS, -np.inf)
    for step in range(30):
        assert (draw(logits, 5.0, 0.99, step=step) % 7 == 3).all()


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-6, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 0]),
        (0.99, [1, 3, 0, 2]),
    ],
)
def test_nucleus_is_the_smallest_set(top_p, kept):
    logits = jnp.log(jnp.array([[0.2, 0.4, 0.1, 0.3]]))
    found = np.asarray(nucleus(logits, jnp.float32(top_p)))[0]
    assert set(np.flatnonzero(found)) == set(kept)


def test_among_equals_the_lower_ids_are_kept():
    found = np.asarray(nucleus(jnp.zeros((2, 4)), jnp.float32(0.5)))
    np.testing.assert_array_equal(found, [[True, True, False, False]] * 2)


def test_another_temperature_is_no_other_program():
    compiled = jax.jit(choose)
    for temperature in (0.5, 0.8, 1.3):
        for seed in (0, 1):
            choice = create_choice(temperature, 0.9, seed, jnp.arange(6))
            compiled(LOGITS, choice, jnp.int32(0))
    assert compiled._cache_size() == 1
