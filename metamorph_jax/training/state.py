"""What a training step carries and a checkpoint stores, born sharded."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.init import abstract_params, logical_axes
from metamorph_jax.optim.selection import Selection
from metamorph_jax.sharding.rules import ShardingRules, specs_for
from metamorph_jax.trees import flatten
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
) -> StateLayout:
    """Returns how a stage's state lies on `mesh`, without allocating any of it."""
    shardings = param_shardings(config, mesh, rules or ShardingRules())
    params = jax.tree.map(_with_sharding, abstract_params(config), shardings)
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = {
        path: flatten(shardings).get(path, replicated)
        for path in jax.eval_shape(selection.split, params)
    }
    shapes = jax.eval_shape(make_initial_state(selection, optimizer), params)

    def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, DictKey) and key.key in trained]
        return _with_sharding(leaf, trained[names[-1]] if names else replicated)

    opt_state = jax.tree_util.tree_map_with_path(place, shapes.opt_state)
    counters = jax.tree.map(
        lambda leaf: _with_sharding(leaf, replicated),
        shapes.replace(params=None, opt_state=None),
    )
    return StateLayout(counters.replace(params=params, opt_state=opt_state), trained)


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
    """Returns the state at the beginning of a stage, on its devices; takes over `params`."""
    initial = make_initial_state(selection, optimizer)
    return jax.jit(initial, out_shardings=layout.shardings, donate_argnums=0)(params)


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
