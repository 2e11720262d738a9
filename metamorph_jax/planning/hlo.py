"""Compiled text (HLO) -> instructions, and how often each is executed in one step.

A scanned model is one loop in the text; its body counts as often as the loop goes round. Only what
the planner needs is read: names, shapes, operands, attributes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?(%[\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"^(\d+)\)")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128, "token": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
        dtype: as in the text ("bf16").
        dims: sizes.
        is_near: whether it lies in a small memory beside the arithmetic units, not in HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    is_near: bool = False

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> float:
        """Bytes, without what tiling pads."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits.group()) if digits else 0)
        return self.size * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        shapes: of its results, one unless it is a tuple.
        operands: names in the same computation.
        text: from behind the opening bracket on: operands and attributes.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool = False

    def attribute(self, pattern: str) -> str:
        """Returns the first group of a pattern in the attributes, or ""."""
        found = re.search(pattern, self.text)
        return found.group(1) if found else ""

    @property
    def called(self) -> str:
        """Name of the computation that it calls, or ""."""
        found = _CALLED.search(self.text)
        return found.group(1)[1:] if found else ""

    @property
    def source(self) -> str:
        """What of the program it was made from."""
        return self.attribute(r'op_name="([^"]*)"')


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the one that runs.
    """

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction on the way through the program.

    Attributes:
        instruction: it.
        scope: the computation that it stands in.
        times: how often it is executed in one call of the program.
        is_fused: whether it is a part of a fusion, so that its results stay in registers.
        inside: name of that computation.
    """

    instruction: Instruction
    scope: Computation
    times: int
    is_fused: bool
    inside: str = ""


def parse_module(text: str) -> Module:
    """Returns the program that `compiled.as_text()` shows."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _COMPUTATION.match(line)
            if header:
                current = computations.setdefault(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
        elif line.rstrip() == "}":
            current = None
        else:
            instruction = _parse_line(line)
            if instruction is None and current:  # attributes of a kernel go over several lines
                last = next(reversed(current.values()))
                instruction = dataclasses.replace(last, text=f"{last.text}\n{line}")
            if instruction is not None:
                current[instruction.name] = instruction
    return Module(computations, entry)


def _parse_line(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    root, name, shapes, opcode, rest = match.groups()
    operands = tuple(_NAME.findall(_until_closed(rest)))
    return Instruction(name, opcode, parse_shapes(shapes), operands, rest, root is not None)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type, in order."""
    return tuple(
        Shape(dtype, tuple(int(dim) for dim in dims.split(",") if dim), "S(1)" in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _until_closed(text: str) -> str:
    """Returns the text up to the bracket that closes one which is already open."""
    depth = 1
    for end, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[:end]
    return text


def walk(module: Module) -> Iterator[Visit]:
    """Yields every instruction that is executed, loops multiplied out, with parts of fusions."""
    yield from _walk(module, module.entry, 1, False)


def _walk(module: Module, name: str, times: int, is_fused: bool) -> Iterator[Visit]:
    scope = module.computations[name]
    for instruction in scope.values():
        yield Visit(instruction, scope, times, is_fused, name)
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.attribute(r"body=%?([\w.\-]+)")
            yield from _walk(module, body, times * trip_count(module, instruction, scope), is_fused)
        elif opcode == "conditional":  # one branch runs; they are taken to cost alike
            branches = instruction.attribute(r"(?:branch_computations=\{|true_computation=)(%\S+)")
            first = _NAME.findall(branches)
            if first:
                yield from _walk(module, first[0], times, is_fused)
        elif opcode in ("fusion", "call", "async-start") and instruction.called:
            inner = is_fused or opcode == "fusion"
            yield from _walk(module, instruction.called, times, inner)


def trip_count(module: Module, loop: Instruction, scope: Computation) -> int:
    """Returns how often a loop goes round: as the compiler says, or its bound less its start.

    Scans count from a constant up to a constant; a loop that does not is taken to run once.
    """
    known = _TRIP_COUNT.search(loop.text)
    if known:
        return int(known.group(1))
    condition = module.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    bounds = [_constant(item) for item in condition.values()]
    start = 0
    state = scope.get(loop.operands[0])
    if state is not None and state.opcode == "tuple":
        counter = scope.get(state.operands[0])
        start = (_constant(counter) if counter is not None else None) or 0
    bound = max((bound for bound in bounds if bound is not None), default=1)
    return max(1, bound - start)


def _constant(instruction: Instruction) -> int | None:
    """Returns the value of an integer constant, None if it is no such thing."""
    if instruction.opcode != "constant" or not instruction.shapes[0].dtype.startswith(("s", "u")):
        return None
    match = _CONSTANT.match(instruction.text)
    return int(match.group(1)) if match and not instruction.shapes[0].dims else None
