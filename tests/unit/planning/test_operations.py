"""FLOPs and bytes of single instructions, against numbers counted by hand."""

import pytest

from metamorph_jax.planning.hlo import parse_module, walk
from metamorph_jax.planning.operations import matrix_flops, memory_bytes


def module_of(*lines: str):
    return parse_module("\n".join(["ENTRY %main (x: f32[]) -> f32[] {", *lines, "}"]))


def flops_of(left: str, right: str, result: str, attributes: str, opcode="convolution") -> float:
    module = module_of(
        f"  %l = {left}{{1,0}} parameter(0)",
        f"  %r = {right}{{1,0}} parameter(1)",
        f'  ROOT %y = {result}{{1,0}} {opcode}(%l, %r), {attributes}, metadata={{op_name="y"}}',
    )
    return sum(matrix_flops(visit) for visit in walk(module))


def test_a_product_over_heads_written_as_a_padded_window():
    # "BTD,DNH->BTNH" with N = 4: for each of 4 outputs, only one of 4 window positions hits.
    attributes = "window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    found = flops_of("bf16[2,6,8,1]", "bf16[8,4,16,1]", "bf16[2,6,4,16]", attributes)
    assert found == 2 * 2 * 6 * 8 * 4 * 16


def test_a_batched_product_written_as_a_dilated_window():
    # "BTKH,BSKH->BKTS" with B = 3, K = 2, T = S = 5, H = 7.
    attributes = "window={size=3x2 stride=2x1 lhs_dilate=3x2}, dim_labels=0b1f_0o1i->01bf"
    found = flops_of("bf16[3,5,2,7]", "bf16[3,5,2,7]", "f32[3,2,5,5]", attributes)
    assert found == 2 * 3 * 2 * 5 * 5 * 7


def test_a_dot_and_a_kernel_that_says_what_it_costs():
    dot = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert flops_of("f32[3,5]", "f32[5,7]", "f32[3,7]", dot, "dot") == 2 * 3 * 5 * 7
    kernel = 'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"12"}}'
    assert flops_of("f32[3,5]", "f32[5,7]", "f32[3,7]", kernel, "custom-call") == 12


@pytest.mark.parametrize(("kernel", "products"), [("fwd_segmented", 2), ("dkv_no_residuals", 5)])
def test_splash_attention_by_hand(kernel, products):
    # 6 heads of 64 on 4 blocks of 512 positions: 10 of 16 blocks are touched.
    module = module_of(
        f"  ROOT %splash_mha_{kernel}.3 = (bf16[6,2048,64]{{2,1,0}}) custom-call(%q), "
        'custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}, '
        "bf16[6,2048,64]{2,1,0}, bf16[2,2048,64]{2,1,0}}, frontend_attributes={metadata={",
        r'"xprof_metadata":"{\"block_q\": 512, \"block_kv\": 512}"',
        '}}, metadata={op_name="y"}',
        "  %after = f32[3,7]{1,0} dot(%l, %r), lhs_contracting_dims={1}",
        "  %l = f32[3,5]{1,0} parameter(0)",
    )
    found = [matrix_flops(visit) for visit in walk(module)]
    assert found == [products * 2 * 6 * 2048 * 2048 * 64 * 10 / 16, 2 * 3 * 5 * 7, 0]


@pytest.mark.parametrize(
    ("line", "num_bytes"),
    [
        ("%y = f32[10]{0} add(%x, %x)", 3 * 40),
        ("%y = f32[10]{0:T(8)S(1)} add(%x, %x)", 2 * 40),  # the result stays near
        ("%y = f32[2]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={2}", 2 * 8),
        ("%y = f32[10]{0} dynamic-update-slice(%x, %u, %i)", 2 * 8),
        ("%y = f32[10]{0} bitcast(%x)", 0),
    ],
)
def test_bytes_of_an_instruction(line, num_bytes):
    module = module_of(
        "  %x = f32[10]{0} parameter(0)",
        "  %u = f32[2]{0} parameter(1)",
        "  %i = s32[] parameter(2)",
        f"  ROOT {line}",
    )
    assert sum(memory_bytes(visit, module) for visit in walk(module)) == num_bytes


def test_a_fusion_that_updates_a_stack_in_place_writes_the_update():
    module = parse_module(
        """\
%fused (p.0: f32[50,10], p.1: f32[1,10], p.2: s32[]) -> f32[50,10] {
  %p.0 = f32[50,10]{1,0} parameter(0)
  %p.1 = f32[1,10]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  ROOT %dus = f32[50,10]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

ENTRY %main (a: f32[50,10], b: f32[1,10], c: s32[]) -> f32[50,10] {
  %a = f32[50,10]{1,0} parameter(0)
  %b = f32[1,10]{1,0} parameter(1)
  %c = s32[] parameter(2)
  ROOT %f = f32[50,10]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}
"""
    )
    assert sum(memory_bytes(visit, module) for visit in walk(module)) == 40 + 40 + 4


def test_a_slice_taken_in_a_fusion_within_a_fusion_is_what_is_read():
    module = parse_module(
        """\
%slicing (s.1: s32[], s.0: f32[50,10]) -> f32[1,10] {
  %s.0 = f32[50,10]{1,0} parameter(1)
  %s.1 = s32[] parameter(0)
  ROOT %ds = f32[1,10]{1,0} dynamic-slice(%s.0, %s.1, %s.1), dynamic_slice_sizes={1,10}
}

%fused (p.0: f32[50,10], p.1: s32[]) -> f32[1,10] {
  %p.0 = f32[50,10]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %part = f32[1,10]{1,0} fusion(%p.1, %p.0), kind=kLoop, calls=%slicing
  ROOT %twice = f32[1,10]{1,0} add(%part, %part)
}

ENTRY %main (a: f32[50,10], c: s32[]) -> f32[1,10] {
  %a = f32[50,10]{1,0} parameter(0)
  %c = s32[] parameter(1)
  ROOT %f = f32[1,10]{1,0} fusion(%a, %c), kind=kLoop, calls=%fused
}
"""
    )
    assert sum(memory_bytes(visit, module) for visit in walk(module)) == 40 + 40 + 4
