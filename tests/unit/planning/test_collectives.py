"""What devices exchange: read from small compiled programs, and from text as TPUs have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.metrics.chips import chip_called
from metamorph_jax.planning.collectives import (
    Collective,
    activation_collectives,
    bandwidth,
    find_collectives,
    mesh_axes,
    replica_groups,
    sum_up,
)
from metamorph_jax.planning.hlo import Instruction, Shape, parse_module
from metamorph_jax.planning.topology import Pod
from metamorph_jax.sharding.mesh import create_mesh

V5P = Pod("v5p:4x4x4", chip_called("v5p"), (4, 4, 4), (), 64)
GRID = np.array(np.unravel_index(np.arange(64), (4, 4, 4))).T


def groups_of(text: str, count: int = 8):
    return replica_groups(Instruction("x", "all-gather", (), (), text), count).tolist()


def test_groups_in_all_the_forms_they_are_written_in():
    assert groups_of("replica_groups={{0,2},{1,3}}, dimensions={0}") == [[0, 2], [1, 3]]
    assert groups_of("replica_groups=[2,2]<=[4]") == [[0, 1], [2, 3]]
    assert groups_of("replica_groups=[2,2]<=[2,2]T(1,0)") == [[0, 2], [1, 3]]
    assert groups_of("replica_groups=mesh['a'=2,'b'=3] {'b'}") == [[0, 1, 2], [3, 4, 5]]
    assert groups_of("replica_groups=mesh['a'=2,'b'=3] {'a','b'}") == [[0, 1, 2, 3, 4, 5]]
    ordered = "replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'a'}, dimensions={0}"
    assert groups_of(ordered) == [[0, 1, 2], [3, 4, 5]]
    assert groups_of("replica_groups=mesh['a'=8] {'a':(2)2}") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups_of("replica_groups={}, dimensions={0}", 3) == [[0, 1, 2]]


def test_groups_are_named_by_the_mesh_axes_they_lie_along():
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh_axes(np.array([[0, 1], [2, 3]]), shape) == "tensor"
    assert mesh_axes(np.array([[0, 4]]), shape) == "data"
    assert mesh_axes(np.arange(8)[None], shape) == "data+fsdp+tensor"


def compiled_step(sizes: dict):
    """Returns an FSDP product with its gradient, for 8 faked devices."""
    mesh = create_mesh(MeshConfig(**sizes))
    place = lambda *names: NamedSharding(mesh, PartitionSpec(*names))  # noqa: E731
    weights, rows = place("fsdp"), place(("data", "fsdp"))

    def gradient(w, x):
        loss = lambda w: jnp.sum(jnp.tanh(x @ w))  # noqa: E731
        return jax.lax.with_sharding_constraint(jax.grad(loss)(w), weights)

    step = jax.jit(gradient, in_shardings=(weights, rows), out_shardings=weights)
    shapes = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
    return mesh, parse_module(step.lower(*shapes).compile().as_text())


def test_a_product_under_fsdp_gathers_its_weights_and_scatters_their_gradient():
    mesh, module = compiled_step({"fsdp": 8})
    found = find_collectives(module, mesh.size)
    whole = 64 * 32 * 4
    gathers = [item for item in found if item.kind == "all-gather"]
    assert {item.num_bytes for item in gathers} == {whole}
    gradients = [item for item in found if item.kind in ("all-reduce", "reduce-scatter")]
    assert [item.shape.num_bytes for item in gradients] == [whole]
    assert {mesh_axes(item.groups, dict(mesh.shape)) for item in found} == {"fsdp"}


def test_replicas_reduce_gradients_over_their_own_axis():
    mesh, module = compiled_step({"data": 4, "fsdp": 2})
    axes = {mesh_axes(item.groups, dict(mesh.shape)) for item in find_collectives(module, 8)}
    assert any("data" in axis for axis in axes) and "fsdp" in axes


def test_an_exchange_that_is_spread_over_fusions_counts_once():
    gather = "all-gather(%p{0}), channel_id=5, replica_groups=[1,2]<=[2]"
    lines = []
    for part in range(3):
        lines += [f"%fused{part} (p{part}: f32[4]) -> f32[8] {{"]
        lines += [f"  %p{part} = f32[4]{{0}} parameter(0)"]
        memory = ":S(1)" if part == 1 else ""  # part of it may lie near the processor
        lines += [f"  ROOT %g{part} = f32[8]{{0{memory}}} {gather.format(part)}", "}"]
    lines += ["ENTRY %main (x: f32[4]) -> f32[8] {", "  %x = f32[4]{0} parameter(0)"]
    call = "fusion(%x), kind=kCustom, calls=%fused{0}"
    lines += [f"  %f{part} = f32[8]{{0}} {call.format(part)}" for part in range(3)]
    found = find_collectives(parse_module("\n".join([*lines, "}"])), 2)
    assert [item.num_bytes for item in found] == [32]


def test_exchanges_that_shard_map_writes_on_one_channel_all_count():
    # Keys and values of a row that several devices share were counted as one gather.
    part = "  %g{0} = f32[8]{{0}} all-gather(%x), channel_id=1, replica_groups=[1,2]<=[2]"
    lines = ["ENTRY %main (x: f32[4]) -> f32[8] {", "  %x = f32[4]{0} parameter(0)"]
    module = parse_module("\n".join([*lines, part.format("0"), part.format("1"), "}"]))
    assert len(find_collectives(module, 2)) == 2


def test_bandwidth_by_hand():
    one_axis, all_axes = np.arange(4)[None], np.arange(64)[None]
    assert bandwidth(V5P, GRID, one_axis) == 2 * 90e9  # both ways round a closed ring
    assert bandwidth(V5P, GRID, all_axes) == 6 * 90e9
    assert bandwidth(V5P, GRID, np.array([[0, 1]])) == 90e9  # neighbours: one link
    v5e = Pod("v5e:8x8", chip_called("v5e"), (8, 8), (), 64)
    grid = np.array(np.unravel_index(np.arange(64), (8, 8))).T
    assert bandwidth(v5e, grid, np.arange(64)[None]) == 2 * 45e9  # 8 is no closed ring of a v5e
    h100 = Pod("h100:16", chip_called("h100"), (16,), (), 16)
    assert bandwidth(h100, None, np.arange(8)[None]) == 450e9
    assert bandwidth(h100, None, np.arange(16)[None]) == 50e9


def test_time_of_a_gather_and_of_an_all_reduce_by_hand():
    groups = np.arange(64)[None]
    whole = Shape("bf16", (1000, 1000))
    found = [Collective(kind, whole, 3, groups, "") for kind in ("all-gather", "all-reduce")]
    reduce, gather = sum_up(found, {"data": 1, "fsdp": 64, "tensor": 1}, V5P, GRID)
    assert (gather.kind, gather.axis, gather.count) == ("all-gather", "fsdp", 3)
    assert gather.num_bytes == 3 * 2e6
    assert gather.seconds == pytest.approx(3 * 2e6 * 63 / 64 / 540e9)
    assert reduce.num_bytes == 2 * gather.num_bytes
    assert reduce.seconds == pytest.approx(2 * gather.seconds)


def test_activations_are_told_from_weights_by_their_shapes():
    groups, parameters = np.arange(4)[None], [(32, 4096, 14336), (4096, 128512), (32, 4096, 8, 128)]

    def misplaced(*dims: int) -> bool:
        item = Collective("all-gather", Shape("bf16", dims), 1, groups, "")
        return bool(activation_collectives([item], parameters))

    for weights in ((1, 4096, 14336), (14336, 4096), (4096, 16064), (1, 4096, 8, 128)):
        assert not misplaced(*weights)
    assert not misplaced(4096, 1024)  # heads merged
    assert misplaced(3, 4096, 14336)  # three rows inside the MLP
    assert misplaced(192, 4096, 4096)  # hidden states of all rows
    assert misplaced(12288, 128512)  # logits
    assert not misplaced(192, 4096)  # token ids: too small to matter
