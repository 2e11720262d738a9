"""What a training step carries and a checkpoint stores, born sharded."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.init import abstract_params, logical_axes
from metamorph_jax.optim.selection import TOKEN_TABLE, Selection
from metamorph_jax.sharding.rules import ShardingRules, specs_for
from metamorph_jax.trees import flatten, unflatten
from metamorph_jax.typing import Array, PyTree


@flax.struct.dataclass
class TrainState:
    """The state of one stage.

    Attributes:
        step: updates tried in this stage, skipped ones included; equals the batches consumed.
        params: the whole model, trained and frozen.
        opt_state: of the trained part only.
        skipped_steps: updates of this stage that were skipped for a NaN or Inf.
        skipped_in_a_row: the last of them without a good one between.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    skipped_steps: Array
    skipped_in_a_row: Array


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and shardings of a stage's state on a mesh.

    Attributes:
        abstract: TrainState of ShapeDtypeStructs that carry their shardings.
        trained: sharding of each trained array by path; gradients are constrained to these.
    """

    abstract: TrainState
    trained: dict[str, NamedSharding]

    @property
    def shardings(self) -> TrainState:
        """Returns the sharding of every leaf."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)


def param_shardings(config: ModelConfig, mesh: Mesh, rules: ShardingRules) -> PyTree:
    """Returns the sharding of every parameter."""
    return specs_for(logical_axes(config), abstract_params(config), mesh, rules)


def state_layout(
    config: ModelConfig,
    selection: Selection,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules | None = None,
    frozen_dtype: str | None = None,
) -> StateLayout:
    """Returns how a stage's state lies on `mesh`, without allocating any of it.

    Args:
        config: of the model.
        selection: the trained part.
        optimizer: of it.
        mesh: of the devices.
        rules: names -> mesh axes; None: the default ones.
        frozen_dtype: of what is not trained; None: that of all parameters.
    """
    shardings = param_shardings(config, mesh, rules or ShardingRules())
    params = stored_params(abstract_params(config), selection, frozen_dtype)
    params = jax.tree.map(_with_sharding, params, shardings)
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = {
        path: flatten(shardings).get(path, replicated)
        for path in jax.eval_shape(selection.split, params)
    }
    shapes = jax.eval_shape(make_initial_state(selection, optimizer), params)

    def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, DictKey) and key.key in trained]
        if not names:
            return _with_sharding(leaf, replicated)
        shape = jax.eval_shape(selection.split, params)[names[-1]].shape
        return _with_sharding(leaf, _like(trained[names[-1]], shape, leaf.shape))

    opt_state = jax.tree_util.tree_map_with_path(place, shapes.opt_state)
    counters = jax.tree.map(
        lambda leaf: _with_sharding(leaf, replicated),
        shapes.replace(params=None, opt_state=None),
    )
    return StateLayout(counters.replace(params=params, opt_state=opt_state), trained)


def stored_params(params: PyTree, selection: Selection, frozen_dtype: str | None) -> PyTree:
    """Returns abstract parameters in the dtypes in which a stage stores them.

    A table of which some rows are trained counts as trained.

    Args:
        params: abstract, or arrays.
        selection: the trained part.
        frozen_dtype: of the rest; None: as it is.
    """
    kept = selection.paths | ({TOKEN_TABLE} if selection.token_rows else set())
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            if frozen_dtype is None or path in kept
            else jax.ShapeDtypeStruct(leaf.shape, np.dtype(frozen_dtype))
            for path, leaf in flatten(params).items()
        }
    )


def _like(
    sharding: NamedSharding, shape: tuple[int, ...], reduced: tuple[int, ...]
) -> NamedSharding:
    """Returns the sharding of a parameter's statistics: of its shape, or with one dimension less.

    Adafactor's means over rows or columns are the latter; placeholders of other shapes are whole.
    """
    if reduced == shape:
        return sharding
    axes = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for left_out in range(len(shape)):
        if shape[:left_out] + shape[left_out + 1 :] == reduced:
            return NamedSharding(
                sharding.mesh, PartitionSpec(*axes[:left_out], *axes[left_out + 1 :])
            )
    return NamedSharding(sharding.mesh, PartitionSpec())


def make_initial_state(
    selection: Selection, optimizer: optax.GradientTransformation
) -> Callable[[PyTree], TrainState]:
    """Returns params -> the state at the beginning of a stage."""

    def initial(params: PyTree) -> TrainState:
        def zero() -> Array:
            return jnp.zeros((), jnp.int32)

        return TrainState(
            step=zero(),
            params=params,
            opt_state=optimizer.init(selection.split(params)),
            skipped_steps=zero(),
            skipped_in_a_row=zero(),
        )

    return initial


def create_state(
    params: PyTree,
    selection: Selection,
    optimizer: optax.GradientTransformation,
    layout: StateLayout,
) -> TrainState:
    """Returns the state at the beginning of a stage, on its devices; takes over `params`.

    They are cast to the dtypes in which the stage stores them.
    """

    def initial(params: PyTree) -> TrainState:
        stored = layout.abstract.params
        params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, stored)
        return make_initial_state(selection, optimizer)(params)

    return jax.jit(initial, out_shardings=layout.shardings, donate_argnums=0)(params)


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
