"""Attention laid out over meshes equals attention on one device; Splash compiles for a pod."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.models.attend import attend
from metamorph_jax.sharding.mesh import create_mesh
from tests import tolerances


def packed_rows(length, head_dim):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(2, length, heads, head_dim)).astype(np.float32) for heads in (4, 2, 2)
    ]
    segments = np.ones((2, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[:, -5:] = 0
    return arrays, segments


def run(backend, mesh, inputs, segments):
    """Returns the result and the gradients of the inputs."""
    weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def loss(*inputs):
        out = attend(backend, *inputs, segments, interpret=True)
        return jnp.vdot(out, weight), out

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    with jax.set_mesh(create_mesh(MeshConfig(**({"fsdp": 1} | mesh)), devices)):
        return jax.device_get(grads(*inputs))


@pytest.mark.parametrize(
    ("backend", "length", "head_dim", "mesh"),
    [
        ("xla", 64, 8, {"fsdp": 2, "context": 2, "tensor": 2}),
        ("chunked", 64, 8, {"fsdp": 2, "context": 2, "tensor": 2}),
        ("chunked", 64, 8, {"context": 2, "tensor": 4}),  # two key/value heads on four devices
        ("splash", 256, 128, {"fsdp": 2, "tensor": 2}),
        ("splash", 256, 128, {"context": 2, "tensor": 4}),
        ("flash", 256, 64, {"fsdp": 2, "tensor": 2}),
    ],
)
def test_a_mesh_changes_nothing(backend, length, head_dim, mesh):
    inputs, segments = packed_rows(length, head_dim)
    grads, out = run(backend, mesh, inputs, segments)
    expected_grads, expected = run("xla", {}, inputs, segments)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2 * tolerances.FLOAT32_REORDERED)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < tolerances.FLOAT32_REORDERED_GRADIENT


def test_rows_longer_than_blocks_are_scanned(monkeypatch):
    monkeypatch.setattr("metamorph_jax.models.attend.SCAN_ABOVE", 32)
    inputs, segments = packed_rows(64, 8)
    _, out = run("chunked", {}, inputs, segments)
    _, expected = run("xla", {}, inputs, segments)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)


FOR_A_POD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.models.attend import attend
from metamorph_jax.sharding.mesh import create_mesh

pod = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
mesh = create_mesh(MeshConfig(fsdp=2, context=2), pod.devices)
rows = jax.NamedSharding(mesh, jax.P("fsdp", "context"))
heads = [jax.ShapeDtypeStruct((2, 4096, n, 128), jnp.bfloat16, sharding=rows) for n in (8, 2, 2)]
ids = jax.ShapeDtypeStruct((2, 4096), jnp.int32, sharding=rows)
loss = lambda q, k, v, ids: jnp.sum(attend("splash", q, k, v, ids).astype(jnp.float32))
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*heads, ids).compile()
assert "splash" in compiled.as_text()
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [plan]")
def test_splash_compiles_for_a_pod_that_is_not_here():
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", FOR_A_POD],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.endswith("compiled\n"), done.stderr[-3000:]
