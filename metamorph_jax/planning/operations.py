"""FLOPs of matrix products, and bytes that go to and from memory, of one executed instruction.

TPU compilers write every matrix product as a convolution, batched ones with dilated windows whose
positions mostly hit nothing; only those that hit something are counted.
"""

import math
import re

import numpy as np

from metamorph_jax.planning.hlo import (
    Computation,
    Instruction,
    Module,
    Shape,
    Visit,
    parse_shapes,
)

# They move nothing by themselves: names for what is there, or work that is walked into.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota", "add-dependency",
}  # fmt: skip

# Square products of splash attention's kernels. Forwards: scores, mixed values. Backwards, in one
# kernel: scores again, and the gradients of values, weights, keys and queries; or in two kernels.
_SPLASH_PRODUCTS = (("splash_mha_fwd", 2), ("splash_mha_dq", 3), ("splash_mha_dkv", 5))


def matrix_flops(visit: Visit) -> float:
    """Returns the FLOPs of one execution; 0 for what is no matrix product."""
    instruction = visit.instruction
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, visit.scope)
    if instruction.opcode == "dot":
        return _dot_flops(instruction, visit.scope)
    if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.text:
        return _kernel_flops(instruction)
    return 0.0


def _kernel_flops(kernel: Instruction) -> float:
    """Returns what a kernel says that it costs; of splash attention, which does not say, a count.

    It goes over the blocks that a causal mask touches: (n + 1) / 2n of the square for n blocks a
    row. Segments leave out no blocks.
    """
    said = kernel.attribute(r'"flops":"?(\d+)')
    products = next((n for name, n in _SPLASH_PRODUCTS if kernel.name.startswith(name)), 0)
    shapes = parse_shapes(kernel.attribute(r"operand_layout_constraints=\{(.*?\})\}"))
    query = next((s.dims for s in shapes if len(s.dims) >= 3 and s.dtype in ("bf16", "f32")), None)
    if said or not products or query is None:
        return float(said or 0)
    block = int(kernel.attribute(r"block_q\W+(\d+)") or query[-2])
    num_blocks = max(1, query[-2] // block)
    causal = (num_blocks + 1) / (2 * num_blocks)
    return products * 2.0 * math.prod(query) * query[-2] * causal


def _dot_flops(dot: Instruction, scope: Computation) -> float:
    dims = scope[dot.operands[0]].shapes[0].dims
    contracted = dot.attribute(r"lhs_contracting_dims=\{([0-9,]*)\}")
    return 2.0 * dot.shapes[0].size * math.prod(dims[int(i)] for i in contracted.split(",") if i)


def _convolution_flops(convolution: Instruction, scope: Computation) -> float:
    """Returns 2 * batch * input features * output features * window positions that hit input.

    Source: `HloCostAnalysis::HandleConvolution` of XLA counts alike.
    """
    left, right = (scope[name].shapes[0].dims for name in convolution.operands[:2])
    labels = convolution.attribute(r"dim_labels=(\S+?)[,\s]").rstrip(",")
    inputs, rest = labels.split("_")
    kernel, outputs = rest.split("->")
    output = convolution.shapes[0].dims
    groups = int(convolution.attribute(r"batch_group_count=(\d+)") or 1)
    count = left[inputs.index("b")] / groups * right[kernel.index("i")] * output[outputs.index("f")]
    for spatial in (label for label in inputs if label.isdigit()):
        window = _window(convolution, int(spatial), right[kernel.index(spatial)])
        count *= _num_hits(left[inputs.index(spatial)], output[outputs.index(spatial)], *window)
    return 2.0 * count


def _window(convolution: Instruction, axis: int, size: int) -> tuple[int, int, int, int, int]:
    """Returns (size, stride, padding before, dilation of input, dilation of kernel)."""
    text = convolution.attribute(r"window=\{([^}]*)\}")

    def part(name: str, default: str) -> str:
        found = re.search(rf"(?:^| ){name}=(\S+)", text)
        return found.group(1).split("x")[axis] if found else default

    before = int(part("pad", "0_0").split("_")[0])
    numbers = (int(part(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    stride, input_dilation, kernel_dilation = numbers
    return size, stride, before, input_dilation, kernel_dilation


def _num_hits(
    length: int,
    num_outputs: int,
    size: int,
    stride: int,
    before: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Returns how many (output, kernel) positions along one axis meet an entry of the input."""
    places = np.arange(num_outputs)[:, None] * stride - before
    places = places + np.arange(size)[None, :] * kernel_dilation
    inside = (places >= 0) & (places < (length - 1) * input_dilation + 1)
    return int(np.sum(inside & (places % input_dilation == 0)))


def memory_bytes(visit: Visit, module: Module) -> float:
    """Returns what one execution reads from and writes to HBM.

    Parts of fusions count nothing; what lies near the arithmetic units counts nothing; of an array
    that is only sliced, or updated in place, the slice counts.
    """
    instruction, scope = visit.instruction, visit.scope
    opcode = instruction.opcode
    if visit.is_fused or opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "dynamic-update-slice":
        return 2 * _far(scope[instruction.operands[1]].shapes)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _far(instruction.shapes)
    if opcode == "copy-start":  # results: the copy, its source, a flag
        return _far(instruction.shapes[:2])
    if opcode == "slice-start":  # results: the source, the slice, a flag
        return instruction.shapes[1].num_bytes + _far(instruction.shapes[1:2])
    if opcode == "fusion" and instruction.called in module.computations:
        return _fusion_bytes(instruction, scope, module)
    reads = sum(_far(scope[name].shapes) for name in instruction.operands if name in scope)
    return reads + _far(instruction.shapes)


def _far(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.num_bytes for shape in shapes if not shape.is_near)


def _fusion_bytes(fusion: Instruction, scope: Computation, module: Module) -> float:
    inner = module.computations[fusion.called]
    total = 0.0
    for name, operand in zip(_parameters(inner), fusion.operands, strict=False):
        if operand in scope and _far(scope[operand].shapes):
            total += _read_bytes(name, inner, module)
    return total + _written_bytes(fusion, inner)


def _parameters(inner: Computation) -> list[str]:
    """Returns the names of a computation's parameters, in order."""
    numbered = {
        int(item.attribute(r"^(\d+)\)") or 0): name
        for name, item in inner.items()
        if item.opcode == "parameter"
    }
    return [numbered[number] for number in sorted(numbered)]


def _read_bytes(name: str, inner: Computation, module: Module) -> float:
    """Returns how much of an array is read in a fusion: slices, if all its users take slices."""
    whole = sum(shape.num_bytes for shape in inner[name].shapes)
    read = 0.0
    for user in inner.values():
        if name not in user.operands or _passes_through(user, name):
            continue
        if user.opcode == "bitcast":
            read += _read_bytes(user.name, inner, module)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            read += sum(shape.num_bytes for shape in user.shapes)
        elif user.opcode == "fusion" and user.called in module.computations:
            called = module.computations[user.called]
            handed = zip(_parameters(called), user.operands, strict=False)
            read += sum(_read_bytes(own, called, module) for own, given in handed if given == name)
        else:
            return whole
    return min(read, whole)


def _passes_through(user: Instruction, name: str) -> bool:
    """Returns whether an operand is handed on, or updated in place, and not read."""
    is_updated = user.opcode == "dynamic-update-slice" and user.operands[0] == name
    return is_updated or user.opcode == "tuple" or "AsyncCollective" in user.text


def _written_bytes(fusion: Instruction, inner: Computation) -> float:
    """Returns how much of a fusion's results is written: of one that is updated, the update."""
    root = next((item for item in inner.values() if item.is_root), None)
    if root is None:
        return _far(fusion.shapes)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for result, shape in zip(results, fusion.shapes, strict=False):
        while result.opcode == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        # A gather beside a product is written once, where it ends.
        if shape.is_near or result.opcode in ("parameter", "all-gather"):
            continue
        if result.opcode == "dynamic-update-slice":
            total += sum(part.num_bytes for part in inner[result.operands[1]].shapes)
        else:
            total += shape.num_bytes
    return total
