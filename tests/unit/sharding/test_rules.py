import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.sharding.rules import (
    DEFAULT_RULES,
    ActivationRules,
    ShardingRules,
    batch_sharding,
    constrain,
    spec_for,
    specs_for,
)

SIZES = {"data": 2, "fsdp": 4, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("embed", "mlp"), (64, 32), P("fsdp", "tensor")),
        (("layers", "embed", "kv_heads", "head_dim"), (3, 64, 2, 16), P(None, "fsdp", "tensor")),
        (("vocab", "embed"), (128, 64), P("tensor", "fsdp")),
        (("embed",), (64,), P("fsdp")),
        ((), (), P()),
        ((None, "mlp"), (5, 32), P(None, "tensor")),
        # Dimensions that do not divide are replicated, not refused.
        (("layers", "embed", "kv_heads", "head_dim"), (3, 64, 1, 16), P(None, "fsdp")),
        (("embed", "mlp"), (66, 33), P()),
    ],
)
def test_specs(names, shape, expected):
    assert spec_for(names, shape, SIZES) == expected


def test_activations_have_their_own_table():
    rules = DEFAULT_RULES.activations
    spec = spec_for(("batch", "length", "embed"), (16, 10, 64), SIZES, rules)
    assert spec == P(("data", "fsdp"))
    spec = spec_for(("batch", "length", "heads", "head_dim"), (16, 10, 4, 8), SIZES, rules)
    assert spec == P(("data", "fsdp"), None, "tensor")
    assert spec_for(("batch",), (12,), SIZES, rules) == P("data")
    assert spec_for(("batch",), (13,), SIZES, rules) == P()


def test_axes_of_one_device_are_left_out():
    assert spec_for(("embed", "mlp"), (64, 32), SIZES | {"fsdp": 1}) == P(None, "tensor")


def test_context_splits_positions_and_shares_parameters():
    sizes = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}
    assert spec_for(("embed", "mlp"), (64, 32), sizes) == P(("fsdp", "context"), "tensor")
    rules = DEFAULT_RULES.activations
    assert spec_for(("batch", "length", "embed"), (4, 8, 16), sizes, rules) == P("fsdp", "context")
    assert spec_for(("images", "patches"), (8, 9), sizes, rules) == P(("fsdp", "context"))
    # As many axes as divide, from the first on.
    assert spec_for(("images", "patches"), (6, 9), sizes, rules) == P("fsdp")
    assert spec_for(("embed",), (66,), sizes) == P("fsdp")


def test_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown logical axis 'embd'.*'embed'"):
        spec_for(("embd",), (64,), SIZES)
    with pytest.raises(ValueError, match="'batch'"):
        spec_for(("batch",), (64,), SIZES)  # a name of activations only


def test_mesh_axis_twice_is_an_error():
    with pytest.raises(ValueError, match="tensor more than once"):
        spec_for(("mlp", "heads"), (32, 4), SIZES)
    rules = ShardingRules(mlp=("tensor", "fsdp"))
    with pytest.raises(ValueError, match="fsdp more than once"):
        spec_for(("embed", "mlp"), (64, 32), SIZES, rules)
    # Even if no dimension would in fact be split.
    with pytest.raises(ValueError, match="more than once"):
        spec_for(("mlp", "heads"), (7, 7), SIZES)


def test_wrong_number_of_names():
    with pytest.raises(ValueError, match=r"2 axis names .* shape \(64,\)"):
        spec_for(("embed", "mlp"), (64,), SIZES)


def test_rules_name_mesh_axes_only():
    for rules in (DEFAULT_RULES, DEFAULT_RULES.activations):
        for field in dataclasses.fields(rules):
            value = getattr(rules, field.name)
            if not isinstance(value, ActivationRules):
                axes = (value,) if isinstance(value, str) else value or ()
                assert set(axes) <= set(SIZES), field.name


def mesh_of_all_devices():
    count = jax.device_count()
    tensor = 2 if count % 2 == 0 else 1
    return create_mesh(MeshConfig(data=1, fsdp=-1, tensor=tensor)), count // tensor, tensor


def test_tree_of_shardings():
    mesh, fsdp, tensor = mesh_of_all_devices()
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": ()}
    shapes = {
        "a": {"kernel": jax.ShapeDtypeStruct((16, 32), jnp.float32)},
        "b": jax.ShapeDtypeStruct((), jnp.float32),
    }
    shardings = specs_for(axes, shapes, mesh)
    kernel = shardings["a"]["kernel"]
    assert kernel.mesh == mesh
    assert kernel.shard_shape((16, 32)) == (16 // fsdp, 32 // tensor)
    assert shardings["b"].spec == P()


def test_constrain_without_a_mesh_checks_names_and_does_nothing():
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "length", "embed") is x
    with pytest.raises(ValueError, match="'lenght'"):
        constrain(x, "batch", "lenght", "embed")
    with pytest.raises(ValueError, match="2 axis names"):
        constrain(x, "batch", "length")


def test_constrain_pins_the_sharding_inside_jit():
    mesh, fsdp, tensor = mesh_of_all_devices()
    x = np.ones((8, 3, 4), np.float32)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x * 2, "batch", "length", "mlp"))(x)
    assert y.sharding.shard_shape(y.shape) == (8 // fsdp, 3, 4 // tensor)
    np.testing.assert_array_equal(y, 2 * x)


def test_batches_are_split_by_rows():
    mesh, fsdp, _ = mesh_of_all_devices()
    assert batch_sharding(mesh).shard_shape((8, 5)) == (8 // fsdp, 5)
