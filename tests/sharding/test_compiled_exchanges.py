"""What the compiled train step exchanges under FSDP: weights and gradients, never activations.

Compiled for faked devices by the same partitioner as for a pod.
"""

import dataclasses

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metamorph_jax.config.schema_run import (
    DataConfig,
    LossConfig,
    MeshConfig,
    RunConfig,
    TokenizerConfig,
)
from metamorph_jax.planning.arithmetic import minimum_exchange_bytes
from metamorph_jax.planning.collectives import activation_collectives, find_collectives, mesh_axes
from metamorph_jax.planning.compiling import compile_lowered, lower_stage
from metamorph_jax.planning.hlo import parse_module
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.trees import flatten
from tests.tiny import tiny_model, tiny_stage

# Hidden states of all rows: 64 rows x 128 positions x 16 x 4 bytes; all parameters are smaller.
HIDDEN_BYTES = 64 * 128 * 16 * 4


def compiled(sizes: dict, **changes):
    model = tiny_model()
    model = dataclasses.replace(model, llm=dataclasses.replace(model.llm, remat="full"))
    data = DataConfig(sources=(), max_seq_len=128, max_images=2)
    stage = tiny_stage(data=data, global_batch_size=64, **changes)
    config = RunConfig(
        name="tiny", model=model, tokenizer=TokenizerConfig(path=""), stages=(stage,)
    )
    mesh = create_mesh(MeshConfig(**sizes))
    program, lowered = lower_stage(config, stage, mesh)
    return mesh, stage, program, compile_lowered(lowered, "a tiny step").module


# With `context`, hidden states of all rows were gathered for the vision head's gradient.
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "context": 2}])
def test_no_activations_or_logits_are_gathered(sizes):
    mesh, _, program, module = compiled(sizes)
    found = find_collectives(module, mesh.size)
    params = flatten(program.layout.abstract.params)
    assert max(leaf.size * 4 for leaf in params.values()) < HIDDEN_BYTES / 8
    shapes = [leaf.shape for leaf in params.values()]
    # Of a row that devices share, they gather keys, values and visual tokens.
    others = [item for item in found if mesh_axes(item.groups, dict(mesh.shape)) != "context"]
    assert not activation_collectives(others, shapes, min_bytes=HIDDEN_BYTES / 8)
    axes = {mesh_axes(item.groups, dict(mesh.shape)) for item in others}
    assert axes <= {"fsdp", "data", "data+fsdp", "fsdp+context"}


def test_the_check_sees_gathered_activations():
    mesh = create_mesh(MeshConfig(fsdp=8))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(lambda x: x + 1, in_shardings=rows, out_shardings=whole)
    hidden = jax.ShapeDtypeStruct((64, 128, 16), "float32")
    module = parse_module(step.lower(hidden).compile().as_text())
    found = find_collectives(module, 8)
    assert activation_collectives(found, [(16, 32)], min_bytes=HIDDEN_BYTES / 8)


def test_weights_are_gathered_in_each_direction_and_no_more():
    mesh, stage, program, module = compiled({"fsdp": 8})
    params = flatten(program.layout.abstract.params)
    trained = {path: params[path] for path in program.layout.trained}
    least = 2 * minimum_exchange_bytes(stage, dict(mesh.shape), params, trained)  # float32 here
    gathered = sum(
        item.num_bytes for item in find_collectives(module, 8) if item.kind == "all-gather"
    )
    assert 0.3 * least < gathered <= 1.15 * least


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_the_output_table_is_gathered_in_each_direction_and_its_gradient_scattered(sizes):
    mesh, _, program, module = compiled(sizes, loss=LossConfig(vocab_chunk_size=8))
    table = flatten(program.layout.abstract.params)["language_model/lm_head/kernel"]
    own_bytes = table.size * 4 / mesh.shape["tensor"]
    found = find_collectives(module, mesh.size)
    of_loss = [item for item in found if "shard_map/while" in item.source]

    def exchanged(kind):
        return sum(item.num_bytes for item in of_loss if item.kind == kind)

    # The compiler may keep a small table for the way back.
    assert exchanged("all-gather") in (own_bytes, 2 * own_bytes)
    assert exchanged("reduce-scatter") == own_bytes
    assert {item.shape.dims[1] for item in of_loss if item.kind == "all-gather"} == {8}
