"""Logical axis names -> mesh axes, and the two places where they are applied.

`specs_for` gives the shardings of parameters (and of anything shaped like them), `constrain` those
of activations inside the model. The two have separate tables because the same name means two
things: the `embed` axis of a parameter is what FSDP splits, that of an activation stays whole,
since its rows are split already.

Three checks that flax's own logical rules lack: an unknown name is an error (flax replicates
silently), a mesh axis used for two dimensions of one array is an error, and a dimension is split
over as many of its mesh axes, from the first on, as divide it, and *replicated* along the others.
The last is deliberate: 8 key/value heads on 16 tensor devices, or 729 positions on anything, must
run; `spec_for` tells what came of it.

Devices of the `context` axis share rows, not parameters: these are split over `context` as well as
over `fsdp`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamorph_jax.errors import nearest
from metamorph_jax.typing import Array, PyTree, Shaped

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationRules:
    """Mesh axes of activations; a field is a logical name.

    Attributes:
        length: positions of a row.
        images: of all rows, in the vision tower, where no row has to stay together.
        patches: positions of an image.
    """

    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = "context"
    images: MeshAxes = ("data", "fsdp", "context")
    patches: MeshAxes = None
    embed: MeshAxes = None
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    visual: MeshAxes = None
    layers: MeshAxes = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Mesh axes of parameters; a field is a logical name. Activations have a table of their own.

    Attributes:
        visual: width of a visual token where it meets connector, vision head or contrastive head.
        vision_embed: width of the vision tower.
        patch: height, width or channels of a patch.
        positions: rows of a learned position table.
        contrastive: width of the shared space of images and captions.
    """

    vocab: MeshAxes = "tensor"
    embed: MeshAxes = ("fsdp", "context")
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    layers: MeshAxes = None
    vision_embed: MeshAxes = ("fsdp", "context")
    vision_mlp: MeshAxes = "tensor"
    vision_heads: MeshAxes = "tensor"
    visual: MeshAxes = None
    patch: MeshAxes = None
    positions: MeshAxes = None
    contrastive: MeshAxes = None
    activations: ActivationRules = ActivationRules()


DEFAULT_RULES = ShardingRules()


def spec_for(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    axis_sizes: Mapping[str, int],
    rules: ShardingRules | ActivationRules = DEFAULT_RULES,
) -> PartitionSpec:
    """Returns the partition of one array.

    Args:
        names: logical name of each dimension; None: never split.
        shape: sizes of the dimensions.
        axis_sizes: devices along each mesh axis; an axis that is not there has one.
        rules: which table to look names up in.

    Raises:
        ValueError: Unknown name, wrong number of names, or a mesh axis used twice.
    """
    if len(names) != len(shape):
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {shape}")
    wanted = [_mesh_axes(name, rules) for name in names]
    _check_no_axis_twice(names, wanted)
    entries = [_entry(axes, size, axis_sizes) for axes, size in zip(wanted, shape, strict=True)]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _entry(axes: tuple[str, ...], size: int, axis_sizes: Mapping[str, int]) -> MeshAxes:
    """Returns which of its mesh axes a dimension of `size` is split over."""
    axes = tuple(axis for axis in axes if axis_sizes.get(axis, 1) > 1)
    while axes and size % math.prod(axis_sizes[axis] for axis in axes):
        axes = axes[:-1]
    return (axes[0] if len(axes) == 1 else axes) if axes else None


def _mesh_axes(name: str | None, rules: ShardingRules | ActivationRules) -> tuple[str, ...]:
    if name is None:
        return ()
    known = [field.name for field in dataclasses.fields(rules) if field.name != "activations"]
    if name not in known:
        raise ValueError(
            f"unknown logical axis {name!r}; nearest: {nearest(name, known)}; "
            f"{type(rules).__name__} has {known}"
        )
    axes = getattr(rules, name)
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _check_no_axis_twice(names: tuple[str | None, ...], wanted: list[tuple[str, ...]]) -> None:
    flat = [axis for axes in wanted for axis in axes]
    twice = sorted({axis for axis in flat if flat.count(axis) > 1})
    if twice:
        raise ValueError(f"logical axes {names} use mesh axis {', '.join(twice)} more than once")


def specs_for(
    logical_axes: PyTree, shapes: PyTree, mesh: Mesh, rules: ShardingRules = DEFAULT_RULES
) -> PyTree:
    """Returns a tree of NamedSharding.

    Args:
        logical_axes: tree with a tuple of names per array, as `models.init.logical_axes` gives.
        shapes: same tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `mesh.create_mesh`.
        rules: names -> mesh axes.
    """

    def sharding(names: tuple[str | None, ...], array: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_for(names, array.shape, mesh.shape, rules))

    return jax.tree.map(sharding, logical_axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def batch_sharding(mesh: Mesh, rules: ShardingRules = DEFAULT_RULES) -> NamedSharding:
    """Returns how arrays of a batch lie: rows over (data, fsdp), all else whole."""
    return NamedSharding(mesh, PartitionSpec(rules.activations.batch))


def constrain(
    x: Shaped[Array, "..."], *names: str | None, rules: ShardingRules = DEFAULT_RULES
) -> Shaped[Array, "..."]:
    """Returns `x` with its sharding pinned to the activation rules of the mesh in force.

    Without a mesh (`jax.set_mesh`) only the names are checked.

    Raises:
        ValueError: Unknown name, wrong number of names, or a mesh axis used twice.
    """
    mesh = jax.sharding.get_abstract_mesh()
    spec = spec_for(names, x.shape, {} if mesh.empty else mesh.shape, rules.activations)
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec)
