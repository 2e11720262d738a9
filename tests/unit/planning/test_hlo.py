"""Compiled text as instructions, with loops multiplied out."""

import jax
import jax.numpy as jnp
import pytest

from metamorph_jax.planning.hlo import parse_module, parse_shapes, walk
from metamorph_jax.planning.operations import matrix_flops, memory_bytes

# As TPU compilers write it: no known trip count, batched products as dilated convolutions.
TPU_TEXT = """\
HloModule jit_step, is_scheduled=true

%body (param.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %param.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte.1 = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=1
  ROOT %fusion.1 = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%gte.1), kind=kOutput, calls=%fused.1
}

%fused.1 (p.1: bf16[4,8]) -> bf16[4,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %w.1 = bf16[8,8]{1,0} constant({...})
  ROOT %conv.1 = bf16[4,8]{1,0} convolution(%p.1, %w.1), dim_labels=bf_io->bf, op_name="a"
}

%condition (param.2: (s32[], bf16[4,8])) -> pred[] {
  %bound.1 = s32[]{:T(128)} constant(27)
  %param.2 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte.2 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.2, %bound.1), direction=LT
}

ENTRY %main (x.1: bf16[4,8]) -> bf16[4,8] {
  %start.1 = s32[]{:T(128)} constant(2)
  %x.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %tuple.1 = (s32[], /*index=1*/bf16[4,8]) tuple(%start.1, %x.1)
  %while.1 = (s32[], bf16[4,8]) while(%tuple.1), condition=%condition, body=%body
  ROOT %gte.3 = bf16[4,8]{1,0} get-tuple-element(%while.1), index=1
}
"""


def flops(text: str) -> float:
    module = parse_module(text)
    return sum(matrix_flops(visit) * visit.times for visit in walk(module))


def test_shapes_of_a_type():
    first, second = parse_shapes("(bf16[3,4]{1,0:T(8,128)(2,1)S(1)}, pred[])")
    assert (first.dims, first.num_bytes, first.is_near) == ((3, 4), 24, True)
    assert (second.dims, second.num_bytes, second.is_near) == ((), 1, False)


def test_a_loop_counts_from_its_start_to_its_bound():
    assert flops(TPU_TEXT) == (27 - 2) * 2 * 4 * 8 * 8
    visits = [visit for visit in walk(parse_module(TPU_TEXT)) if visit.instruction.name == "conv.1"]
    assert [(visit.times, visit.is_fused, visit.inside) for visit in visits] == [
        (25, True, "fused.1")
    ]
    assert visits[0].instruction.source == "a"


def test_flops_of_a_scanned_program_are_those_of_all_its_rounds():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.zeros((16, 32)), jnp.zeros((5, 32, 32))
    text = jax.jit(scanned).lower(x, weights).compile().as_text()
    assert flops(text) == 5 * 2 * 16 * 32 * 32
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(scanned(x, w))))
    both = flops(gradient.lower(weights).compile().as_text())
    assert both == pytest.approx(3 * 5 * 2 * 16 * 32 * 32, rel=0.21)  # the first dx is unused


def test_memory_of_a_loop_is_read_in_slices():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    x, weights = jnp.zeros((1000,)), jnp.zeros((50, 1000))
    module = parse_module(jax.jit(scanned).lower(x, weights).compile().as_text())
    total = sum(memory_bytes(visit, module) * visit.times for visit in walk(module))
    least = 50 * 3 * 4000  # each round reads a slice and the sum, and writes the sum
    assert least <= total <= 3 * least  # the whole stack in each round would be 50 * 200,000
