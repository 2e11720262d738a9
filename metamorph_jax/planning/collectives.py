"""What devices exchange in one step: kinds, bytes, the mesh axis, and the time of it.

Bytes are per device and of the whole array that a group deals with: what an all-gather ends with,
what a reduce-scatter begins with, twice an all-reduce (which is both).
"""

import collections
import dataclasses
import itertools
import math
import re

import numpy as np

from metamorph_jax.planning.hlo import Instruction, Module, Shape, Visit, walk
from metamorph_jax.planning.topology import Pod
from metamorph_jax.typing import Array, Int

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_LIST = re.compile(r"replica_groups=\{(\{[0-9,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}")
_ORDER = re.compile(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_SHARED_CHANNEL = "1"
_MAX_PADDING = 0.02  # of what is scattered; seen: 1.6 %
_PAIR = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange, of one array.

    Attributes:
        kind: one of `KINDS`; an all-reduce of which each device keeps a slice is a reduce-scatter
            if the compiler made one operation of it.
        shape: of the whole array.
        times: per step.
        groups: partition ids that exchange with each other, a row per group.
        source: of the program.
    """

    kind: str
    shape: Shape
    times: int
    groups: Int[Array, "groups members"]
    source: str

    @property
    def num_bytes(self) -> float:
        """Bytes of one step, see the module."""
        return self.shape.num_bytes * self.times * (2 if self.kind == "all-reduce" else 1)

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device receives in one step; its own part stays where it is."""
        members = self.groups.shape[1]
        return self.num_bytes * (members - 1) / members


def find_collectives(module: Module, num_partitions: int) -> list[Collective]:
    """Returns every exchange of more than one device, one per array.

    One that is spread over several fusions (started, gone on with beside a product, ended) stands
    in the text once for each, under the same channel; it counts once. All that `shard_map` writes
    are on channel 1: these are told apart by what they are outside of fusions, by where they come
    from inside.
    """
    by_key: dict[tuple, list[Collective]] = {}
    for visit in walk(module):
        kind = _kind(visit)
        if kind is None:
            continue
        groups = replica_groups(visit.instruction, num_partitions)
        if groups.shape[1] < 2:
            continue
        source, shapes = visit.instruction.source, _whole_arrays(visit, kind)
        key = (visit.inside, visit.instruction.name)
        if visit.is_fused:
            channel = visit.instruction.attribute(r"channel_id=(\d+)")
            dims = [shape.dims for shape in shapes]  # its parts may lie in other memories
            key = (channel, source if channel == _SHARED_CHANNEL else "", kind, *dims)
        before = by_key.get(key)
        if before is None or visit.times > before[0].times:
            by_key[key] = [Collective(kind, shape, visit.times, groups, source) for shape in shapes]
    return [item for items in by_key.values() for item in items]


def _kind(visit: Visit) -> str | None:
    opcode = visit.instruction.opcode.removesuffix("-start")
    if opcode == "all-reduce" and visit.inside.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return opcode if opcode in KINDS else None


def _whole_arrays(visit: Visit, kind: str) -> list[Shape]:
    """Returns the arrays that a group deals with as wholes."""
    instruction, scope = visit.instruction, visit.scope
    if kind == "all-gather" and instruction.opcode.endswith("-start"):
        return list(instruction.shapes[len(instruction.operands) :])
    if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
        operands = [scope[name] for name in instruction.operands if name in scope]
        return [shape for operand in operands for shape in operand.shapes]
    if kind == "collective-permute":
        return list(instruction.shapes[:1])
    return list(instruction.shapes)


def replica_groups(instruction: Instruction, num_partitions: int) -> Int[Array, "groups members"]:
    """Returns the groups of an exchange; all partitions are one group where none are written."""
    text = instruction.text
    if match := _LIST.search(text):
        rows = re.findall(r"\{([0-9,]+)\}", match.group(1))
        return np.array([[int(number) for number in row.split(",")] for row in rows])
    if match := _IOTA.search(text):
        return _ordered(match.group(2)).reshape(_numbers(match.group(1)))
    if match := _MESH.search(text):
        return _mesh_groups(*match.groups())
    if match := _PAIR.search(text):
        return np.array([_numbers(",".join(match.groups()))])
    return np.arange(num_partitions)[None, :]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _ordered(text: str) -> Int[Array, "n"]:
    """Returns the ids that "[4,16]T(1,0)" means: counted, shaped, transposed, flattened."""
    dims, order = _ORDER.match(text).groups()
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _mesh_groups(axes: str, order: str | None, used: str) -> Int[Array, "groups members"]:
    """Returns the groups of "mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}".

    A part of an axis is written 'a':(2)4: of its devices, the digit of size 4 below one of size 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = _ordered(order) if order else np.arange(math.prod(sizes.values()))
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", used)
    dims, names = [], []
    for name, size in sizes.items():
        cut = next(((int(b), int(n)) for a, b, n in parts if a == name and b), None)
        whole = any(a == name and not b for a, b, _ in parts)
        before, inner = cut or (1, size)
        dims += [before, inner, size // (before * inner)]
        names += [False, whole or cut is not None, False]
    ids = ids.reshape(dims)
    kept = [axis for axis, is_used in enumerate(names) if not is_used]
    joined = [axis for axis, is_used in enumerate(names) if is_used]
    members = math.prod(dims[axis] for axis in joined)
    return ids.transpose(kept + joined).reshape(-1, members)


def mesh_axes(groups: Int[Array, "groups members"], mesh_shape: dict[str, int]) -> str:
    """Returns the mesh axes along which the members of a group differ, as "fsdp" or "data+fsdp"."""
    places = np.array(np.unravel_index(groups[0], tuple(mesh_shape.values())))
    names = [
        name for name, place in zip(mesh_shape, places, strict=True) if len(np.unique(place)) > 1
    ]
    return "+".join(names) or "none"


def bandwidth(
    pod: Pod, coordinates: Int[Array, "devices axes"], groups: Int[Array, "groups members"]
) -> float:
    """Returns the bytes per second that each device of a group can receive.

    TPUs: every axis of the torus along which members differ brings in one link, or two where the
    group goes all the way round a ring. GPUs: NVLink within a host, the network beyond it.

    Args:
        pod: the machine.
        coordinates: of partition i on the torus; unused for GPUs.
        groups: who exchanges with whom.
    """
    chip = pod.chip
    if not chip.is_tpu:
        is_within = groups.shape[1] <= chip.devices_per_host
        return chip.link_bytes_per_sec if is_within else chip.network_bytes_per_sec
    places = coordinates[groups[0]]
    links = 0
    for axis, extent in enumerate(pod.extents):
        reached = len(np.unique(places[:, axis]))
        if reached > 1:
            links += 2 if reached == extent and pod.is_ring(axis) and extent > 2 else 1
    return chip.link_bytes_per_sec * max(1, links)


@dataclasses.dataclass(frozen=True)
class CollectiveSum:
    """All exchanges of one kind over one mesh axis, per device and step."""

    kind: str
    axis: str
    count: int
    num_bytes: float
    seconds: float


def sum_up(
    found: list[Collective],
    mesh_shape: dict[str, int],
    pod: Pod,
    coordinates: Int[Array, "devices axes"],
) -> list[CollectiveSum]:
    """Returns the exchanges by kind and mesh axis, the longest first."""
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for item in found:
        entry = sums[item.kind, mesh_axes(item.groups, mesh_shape)]
        entry[0] += item.times
        entry[1] += item.num_bytes
        entry[2] += item.sent_bytes / bandwidth(pod, coordinates, item.groups)
    rows = [CollectiveSum(*key, int(entry[0]), *entry[1:]) for key, entry in sums.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def activation_collectives(
    found: list[Collective], parameters: list[tuple[int, ...]], min_bytes: float = 16 * 2**20
) -> list[Collective]:
    """Returns the large gathers and reductions that are of no parameter's shape.

    Weights and their gradients travel under FSDP; activations and logits should not. Dimensions
    are compared without order and without ones; a block of the vocabulary is a part of a table. A
    reduction that is scattered may be padded to what divides.

    Args:
        found: from `find_collectives`.
        parameters: shapes, those of stacked blocks with their first dimension.
        min_bytes: smaller arrays (statistics, token ids) are left out.
    """
    allowed = set(itertools.chain.from_iterable(_keys(shape) for shape in parameters))
    tables = {shape for shape in parameters if len(shape) == 2}
    return [
        item
        for item in found
        if item.kind in ("all-gather", "all-reduce", "reduce-scatter")
        and item.shape.num_bytes >= min_bytes
        and not _is_padded(_key(item.shape.dims), allowed)
        and not _is_block(item.shape.dims, tables)
    ]


def _is_padded(key: tuple[int, ...], allowed: set[tuple[int, ...]]) -> bool:
    """Returns whether an array has an allowed shape, or one that is a little larger."""
    return key in allowed or any(
        len(key) == len(other)
        and all(small <= large for small, large in zip(other, key, strict=True))
        and math.prod(key) <= (1 + _MAX_PADDING) * math.prod(other)
        for other in allowed
    )


def _key(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(dim for dim in dims if dim > 1))


def _keys(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns how a parameter may look: whole or one of its blocks, heads merged or not."""
    looks = [shape, shape[1:]]
    merged = [
        (*look[:i], look[i] * look[i + 1], *look[i + 2 :])
        for look in looks
        for i in range(len(look) - 1)
    ]
    return [_key(look) for look in looks + merged]


def _is_block(dims: tuple[int, ...], tables: set[tuple[int, ...]]) -> bool:
    """Returns whether an array is some columns of a table, fewer than all."""
    key = _key(dims)
    return len(key) == 2 and any(
        width in key and (key[0] + key[1] - width) < rows and rows > 4 * width
        for rows, width in (sorted(table, reverse=True) for table in tables)
    )
