import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metamorph_jax.models.connector import alternating_axes, create_connector
from metamorph_jax.models.vision_head import create_vision_head
from metamorph_jax.sharding.rules import spec_for
from tests import tolerances
from tests.tiny import tiny_model

F32 = jnp.dtype("float32")


def shapes_of(module, width):
    init = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, width)))["params"]
    return {name: layer["kernel"].value.shape for name, layer in init.items()}, init


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [(8, 16)]),
        ("mlp1x_gelu", [(8, 16)]),
        ("mlp2x_gelu", [(8, 16), (16, 16)]),
        ("mlp3x_gelu", [(8, 16), (16, 16), (16, 16)]),
    ],
)
def test_connector_layers(name, expected):
    shapes, boxed = shapes_of(create_connector(tiny_model(connector=name), F32, F32), 8)
    assert shapes == {f"layers_{i}": shape for i, shape in enumerate(expected)}
    assert_shardable(boxed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [(16, 8)]),
        ("mlp", [(16, 16), (16, 8)]),
        ("mlp2x_gelu", [(16, 16), (16, 16), (16, 8)]),
    ],
)
def test_vision_head_layers(name, expected):
    shapes, boxed = shapes_of(create_vision_head(tiny_model(vision_head=name), F32, F32), 16)
    assert shapes == {f"layers_{i}": shape for i, shape in enumerate(expected)}
    assert_shardable(boxed)


def assert_shardable(boxed):
    """Every kernel splits over fsdp or tensor where it can, and uses no mesh axis twice."""
    for layer in boxed.values():
        kernel = layer["kernel"]
        spec_for(kernel.names, kernel.value.shape, {"data": 2, "fsdp": 2, "tensor": 2})


def test_gelu_is_exact():
    module = create_connector(tiny_model(), F32, F32)
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    weights = [np.random.default_rng(i).normal(size=s) for i, s in enumerate([(8, 16), (16, 16)])]
    weights = [w.astype(np.float32) / 4 for w in weights]
    bias = np.full(16, 0.1, np.float32)
    params = {f"layers_{i}": {"kernel": w, "bias": bias} for i, w in enumerate(weights)}
    inner = torch.nn.functional.gelu(torch.tensor(x @ weights[0] + bias)).numpy()
    np.testing.assert_allclose(
        module.apply({"params": params}, x),
        inner @ weights[1] + bias,
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )


def test_alternating_axes_end_with_the_last_and_differ():
    assert alternating_axes(1, "embed") == ("embed",)
    assert alternating_axes(2, "embed") == ("mlp", "embed")
    assert alternating_axes(3, "embed") == ("embed", "mlp", "embed")
