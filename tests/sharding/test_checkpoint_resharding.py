"""Checkpoints written on one mesh and read on another: same bits, the sharding asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamorph_jax.checkpoints.store import CheckpointStore
from tests.unit.checkpoints.examples import assert_same, make_meta

AXES = ("data", "fsdp", "tensor")
SPECS = {
    "embedding": PartitionSpec("tensor", "fsdp"),
    "kernel": PartitionSpec(None, "fsdp", "tensor"),
    "scale": PartitionSpec(),
    "bias": PartitionSpec(("fsdp", "tensor")),
}


def _params():
    random = np.random.default_rng(5)
    shapes = {"embedding": (16, 32), "kernel": (3, 32, 16), "scale": (32,), "bias": (16,)}
    params = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return params | {"kernel": params["kernel"].astype(jnp.bfloat16)}


def _mesh(shape):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), AXES)


def _shardings(tree, mesh):
    """Returns a sharding for each leaf, by the last name of its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(
            mesh, SPECS.get(getattr(path[-1], "key", ""), PartitionSpec())
        ),
        tree,
    )


def _state(mesh):
    params = _params()
    state = {
        "step": jnp.asarray(3),
        "params": params,
        "opt_state": jax.tree.map(lambda x: x + 1, optax.adam(1e-3).init(params)),
    }
    return jax.tree.map(jax.device_put, state, _shardings(state, mesh))


def _abstract(state, mesh):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        _shardings(state, mesh),
    )


def _check(restored, wanted, mesh):
    assert_same(restored, wanted)
    shardings = _shardings(wanted, mesh)
    for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding


PAIRS = [
    ((1, 8, 1), (1, 4, 2)),
    ((1, 4, 2), (1, 2, 4)),
    ((8, 1, 1), (1, 8, 1)),
    ((2, 2, 2), (8, 1, 1)),
    ((1, 1, 8), (2, 4, 1)),
    ((1, 1, 1), (2, 2, 2)),
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_another_mesh(tmp_path, before, after):
    state = _state(_mesh(before))
    store = CheckpointStore(tmp_path)
    store.save(3, state, make_meta(3))
    mesh = _mesh(after)
    restored, meta = store.restore(_abstract(state, mesh))
    assert meta.step == 3
    _check(restored, state, mesh)
    params, _ = store.restore_params(_abstract(state["params"], mesh))
    _check(params, state["params"], mesh)


def test_eight_four_two_one_eight_devices_in_turn(tmp_path):
    state = wanted = _state(_mesh((1, 8, 1)))
    store = CheckpointStore(tmp_path)
    for step, shape in enumerate([(1, 4, 1), (1, 1, 2), (1, 1, 1), (2, 4, 1)], start=1):
        store.save(step, state, make_meta(step))
        mesh = _mesh(shape)
        state, _ = store.restore(_abstract(wanted, mesh))
        _check(state, wanted, mesh)


def test_without_shardings_everything_goes_to_the_first_device(tmp_path):
    state = _state(_mesh((1, 8, 1)))
    store = CheckpointStore(tmp_path)
    store.save(3, state, make_meta(3))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    restored, _ = store.restore(shapes)
    assert_same(restored, state)
    assert {leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(restored)} == {True}
