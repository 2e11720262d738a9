"""What is counted without a compiler, by hand."""

import jax
import pytest

from metamorph_jax.metrics.chips import chip_called
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import select
from metamorph_jax.planning.arithmetic import counted_collectives, minimum_exchange_bytes
from metamorph_jax.planning.topology import Pod
from metamorph_jax.trees import flatten
from tests.tiny import tiny_model, tiny_stage

H100 = Pod("h100:8", chip_called("h100"), (8,), (), 8)


def parts(stage):
    params = abstract_params(tiny_model())
    trained = jax.eval_shape(select(params, stage.trained).split, params)
    return flatten(params), trained


def size(arrays, *prefixes):
    return sum(leaf.size for path, leaf in arrays.items() if path.startswith(prefixes or ""))


def mesh(**sizes):
    return {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes


def test_least_that_fsdp_exchanges():
    stage = tiny_stage(grad_accum_steps=2)
    params, trained = parts(stage)
    tower = size(params, "vision_tower")
    rest = size(params) - tower
    minimum = minimum_exchange_bytes(stage, mesh(fsdp=4), params, trained)
    assert minimum == 2 * 2 * (3 * rest + tower)  # two micro-batches, two bytes
    assert minimum_exchange_bytes(stage, mesh(data=4), params, trained) == 0


def test_frozen_parameters_that_gradients_pass_through_are_gathered_twice():
    stage = tiny_stage(trained=("connector",))
    params, trained = parts(stage)
    once = size(params, "vision_tower", "language_model/embed_tokens")
    thrice = size(params, "connector")
    twice = size(params) - once - thrice
    minimum = minimum_exchange_bytes(stage, mesh(fsdp=8), params, trained)
    assert minimum == 2 * (once + 2 * twice + 3 * thrice)


def test_replicas_and_tensor_parallelism_reduce():
    stage = tiny_stage()
    params, trained = parts(stage)
    rows = counted_collectives(tiny_model(), stage, mesh(data=2, tensor=4), H100, params, trained)
    found = {row.axis: row for row in rows}
    assert set(found) == {"data", "tensor"}
    assert found["data"].num_bytes == 2 * 2 * size(trained) / 4
    tokens = 8 * 24 / 2  # of a replica
    assert found["tensor"].num_bytes == 2 * 2 * tokens * 16 * 2 * 4  # width, layers, sums
    seconds = found["tensor"].num_bytes * 3 / 4 / 450e9
    assert found["tensor"].seconds == pytest.approx(seconds)
