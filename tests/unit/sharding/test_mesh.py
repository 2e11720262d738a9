import jax
import pytest
from jax.sharding import AxisType

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.errors import UserError
from metamorph_jax.sharding.mesh import AXIS_NAMES, create_mesh, mesh_shape, num_batch_shards


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ((1, -1, 1, 1), 8, (1, 8, 1, 1)),
        ((2, -1, 1, 2), 8, (2, 2, 1, 2)),
        ((-1, 2, 1, 1), 8, (4, 2, 1, 1)),
        ((1, 4, 1, 2), 8, (1, 4, 1, 2)),
        ((1, 2, -1, 2), 8, (1, 2, 2, 2)),
        ((1, -1, 1, 1), 1, (1, 1, 1, 1)),
    ],
)
def test_sizes(sizes, devices, expected):
    assert mesh_shape(MeshConfig(**dict(zip(AXIS_NAMES, sizes, strict=True))), devices) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, -1, 1, 1), "must divide 8"),
        ((2, 2, 1, 1), "must equal 8"),
        ((2, 8, 1, 1), "must equal 8"),
        ((2, 1, 3, 1), "must equal 8"),
        ((-1, -1, 1, 1), "-1 once"),
        ((0, 8, 1, 1), "positive"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message) as error:
        mesh_shape(MeshConfig(**dict(zip(AXIS_NAMES, sizes, strict=True))), 8)
    assert str(sizes) in str(error.value)


def test_mesh_of_all_and_of_some_devices():
    mesh = create_mesh(MeshConfig())
    assert dict(mesh.shape) == {
        "data": 1,
        "fsdp": jax.device_count(),
        "context": 1,
        "tensor": 1,
    }
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert num_batch_shards(mesh) == jax.device_count()
    one = create_mesh(MeshConfig(), jax.devices()[:1])
    assert one.size == 1
    assert set(one.axis_types) == {AxisType.Auto}


def test_tensor_neighbours_are_next_to_each_other():
    devices = jax.devices()
    tensor = 2 if len(devices) % 2 == 0 else 1
    mesh = create_mesh(MeshConfig(tensor=tensor), devices)
    assert list(mesh.devices.flat) == list(devices)
    assert mesh.devices.shape[3] == tensor
