import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.optim.moments import round_at_random
from metamorph_jax.optim.optimizer import make_optimizer
from tests import tolerances


def optimizer(**changes):
    config = OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.0, max_grad_norm=None, **changes)
    return make_optimizer(config, 1000, 1, ["a/kernel"])


def moments_after(num_steps, gradient, **changes):
    adam = optimizer(**changes)
    params = {"a/kernel": jnp.zeros(gradient.shape)}
    update = jax.jit(lambda state: adam.update({"a/kernel": gradient}, state, params))
    state = adam.init(params)
    for _ in range(num_steps):
        updates, state = update(state)
    return (
        updates["a/kernel"],
        optax.tree.get(state, "mu")["a/kernel"],
        optax.tree.get(state, "nu")["a/kernel"],
    )


@pytest.mark.parametrize("value", [1.0, 1.001, 3e-9, 0.0])
def test_random_rounding_is_right_in_the_mean(value):
    x = jnp.full((20000,), value)
    rounded = np.asarray(round_at_random(x, jax.random.key(1)), np.float64)
    assert len(np.unique(rounded)) <= 2
    spread = value * tolerances.BFLOAT16_ROUNDING / np.sqrt(20000)
    assert abs(rounded.mean() - np.float32(value)) <= 4 * spread


@pytest.mark.parametrize("moments", ["bfloat16_first", "bfloat16"])
def test_moments_are_stored_as_the_recipe_says_and_updates_agree(moments):
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
    exact = moments_after(200, gradient)
    update, mu, nu = moments_after(200, gradient, moments=moments)
    assert mu.dtype == jnp.bfloat16
    assert nu.dtype == (jnp.bfloat16 if moments == "bfloat16" else jnp.float32)
    # Rounding at random is noise: of some percent in a moment, half of that in a step.
    error = np.asarray(update) / np.asarray(exact[0]) - 1
    assert np.sqrt(np.mean(error**2)) < tolerances.BFLOAT16 / 2
    ratio = np.asarray(nu, np.float64).sum() / np.asarray(exact[2], np.float64).sum()
    assert abs(ratio - 1) < tolerances.BFLOAT16_ROUNDING


def test_rounding_to_the_nearest_would_lose_the_second_moment():
    """Why it is rounded at random: a moment of 1 would never follow gradients of 0.9."""
    nearest = jnp.bfloat16(1.0)
    for _ in range(1000):
        nearest = (0.999 * nearest.astype(jnp.float32) + 0.001 * 0.81).astype(jnp.bfloat16)
    assert nearest == 1.0
    value = jnp.full((4096,), 1.0, jnp.bfloat16)
    step = jax.jit(
        lambda value, key: round_at_random(0.999 * value.astype(jnp.float32) + 0.00081, key)
    )
    for index in range(1000):
        value = step(value, jax.random.key(index))
    exact = 0.81 + 0.19 * 0.999**1000
    assert abs(np.asarray(value, np.float64).mean() / exact - 1) < tolerances.BFLOAT16_ROUNDING


def test_adafactor_keeps_rows_and_columns_and_no_first_moment():
    adafactor = optimizer(algorithm="adafactor")
    params = {"a/kernel": jnp.zeros((3, 128, 256))}
    state = adafactor.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 3 * (128 + 256) + 8
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 128, 256)), jnp.float32)
    updates, _ = adafactor.update({"a/kernel": gradient}, state, params)
    # A step's size is that of AdamW's: the learning rate.
    assert 0.5e-2 < np.sqrt(np.mean(np.square(updates["a/kernel"]))) <= 1.01e-2
