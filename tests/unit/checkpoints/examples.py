"""A small training state whose every number follows from its step, so that any mix-up shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metamorph_jax.checkpoints.metadata import CheckpointMeta, library_versions
from metamorph_jax.checkpoints.naming import tree_fingerprint


def make_params(step: int) -> dict:
    random = np.random.default_rng(step)
    return {
        "connector": {"layers_0": {"kernel": _normal(random, 8, 16), "bias": _normal(random, 16)}},
        "language_model": {
            "blocks": {"mlp": {"up": {"kernel": _normal(random, 2, 16, 8).astype(jnp.bfloat16)}}},
            "embed_tokens": {"embedding": _normal(random, 32, 16)},
        },
    }


def make_state(step: int) -> dict:
    """Returns the state after `step` steps; another step gives other numbers everywhere."""
    params = make_params(step)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adam(1e-3), {"connector": True, "language_model": False}),
    )
    opt_state = jax.tree.map(lambda leaf: leaf + step, optimizer.init(params))
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "opt_state": opt_state,
        "skipped": jnp.asarray([step, 2 * step], jnp.uint32),
    }


def make_meta(step: int) -> CheckpointMeta:
    return CheckpointMeta(
        step=step,
        stage="vpit",
        stage_step=step,
        stage_total_steps=1000,
        data_fingerprint="plan",
        seed=7,
        recipe="name = 'test'",
        model_fingerprint=tree_fingerprint(make_params(0)),
        versions=library_versions(),
    )


def abstract(tree, sharding=None):
    """Returns `tree` as jax.ShapeDtypeStruct, all with `sharding` (a sharding or None)."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def assert_same(found, wanted) -> None:
    """Same classes, same dtypes, same bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def _normal(random: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(random.normal(size=shape).astype(np.float32))
