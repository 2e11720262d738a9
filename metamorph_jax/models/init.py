"""Parameters from nothing: values, shapes, and logical axes.

All three come from the same trace of `MetaMorph.touch_all`, so they cannot disagree. Weights of
published checkpoints come through `hub/`.
"""

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.trees import flatten
from metamorph_jax.typing import PyTree


def init_params(config: ModelConfig, rng: jax.Array) -> PyTree:
    """Returns fresh parameters as a plain nested dict.

    Call it inside `jit` with `out_shardings` from `sharding.rules.specs_for`, and no device ever
    holds the whole model. Equal for every sharding.

    Args:
        config: of the model.
        rng: a jax random key.
    """
    return nn.unbox(_boxed_params(config, rng))


def init_some(config: ModelConfig, rng: jax.Array, names: Collection[str]) -> dict[str, jax.Array]:
    """Returns only the parameters called `names`, equal to those of `init_params`.

    Under `jit` the others are never made.
    """
    return {name: leaf for name, leaf in flatten(init_params(config, rng)).items() if name in names}


def abstract_params(config: ModelConfig) -> PyTree:
    """Returns the same tree of `jax.ShapeDtypeStruct`; allocates nothing."""
    return nn.unbox(_abstract_boxed(config))


def logical_axes(config: ModelConfig) -> PyTree:
    """Returns the same tree of tuples of logical axis names, one name per dimension."""

    def names(leaf) -> tuple[str, ...]:
        return tuple(leaf.names) if isinstance(leaf, nn.meta.AxisMetadata) else ()

    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(names, _abstract_boxed(config), is_leaf=is_box)


def num_params(tree: PyTree) -> int:
    """Returns how many numbers a tree of arrays or `jax.ShapeDtypeStruct` holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnums=0)
def _boxed_params(config: ModelConfig, rng: jax.Array) -> PyTree:
    # Under jit the compiler drops the forward pass: only the initialisers run.
    size = config.vision.image_size
    # Rows of two tokens are no rows that kernels, or devices that share rows, could do.
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, attention="xla"))
    images = jnp.zeros((1, 1, size, size, 3), jnp.uint8)
    tokens = jnp.zeros((1, 2), jnp.int32)
    return MetaMorph(config).init(rng, images, tokens, method="touch_all")["params"]


def _abstract_boxed(config: ModelConfig) -> PyTree:
    # The key is abstract, too: under a mesh of devices that are not here, nothing can be made.
    return jax.eval_shape(lambda: _boxed_params(config, jax.random.key(0)))
