"""Memory that one device needs for a stage, by arithmetic: what follows from shapes alone.

    state          parameters and optimiser, split over the devices as the rules say
    gradients      of the trained part, split like it
    casts          the decoder's weights in the dtype that is computed in, still split: they are
                   cast once, outside the loop over layers
    kept           what the remat policy keeps of each layer for the backward pass
    at work        the largest of three moments that never coincide: a block going backwards, the
                   loss, the vision tower

The last two are in `activations.py`. docs/scaling.md has the sums beside compiled programs. The
gaps that an allocator leaves between arrays, and what tiles pad, are not in it: `plan` measures
them.
"""

import math

import jax
import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.models.init import logical_axes
from metamorph_jax.optim.optimizer import make_optimizer
from metamorph_jax.optim.selection import Selection
from metamorph_jax.sharding.rules import spec_for
from metamorph_jax.training.activations import (
    around_bytes,
    block_bytes,
    kept_bytes,
    loss_bytes,
    tower_bytes,
)
from metamorph_jax.training.state import stored_params
from metamorph_jax.trees import flatten
from metamorph_jax.typing import PyTree

_BLOCKS = "language_model/blocks"


def estimate_memory(
    model: ModelConfig,
    stage: StageConfig,
    params: PyTree,
    selection: Selection,
    mesh: dict[str, int],
) -> dict[str, float]:
    """Returns bytes per device by what they hold, and their sum.

    Args:
        model: the model.
        stage: the stage.
        params: abstract parameters.
        selection: the trained part.
        mesh: devices per axis; optimiser state is taken to lie like its parameters.
    """
    tensor, context = mesh["tensor"], mesh.get("context", 1)
    shards = _num_shards(model, params, mesh)
    trained = jax.eval_shape(selection.split, params)
    stored = stored_params(params, selection, stage.frozen_dtype)
    rows = stage.global_batch_size // (mesh["data"] * mesh["fsdp"] * stage.grad_accum_steps)
    kept, moments = 0.0, [0.0]
    if not stage.data.features:
        moments.append(tower_bytes(model, rows / context, stage, tensor))
    if stage.objective == "vpit":
        kept = kept_bytes(model, rows, stage, tensor, context)
        around = around_bytes(model, rows, stage, context)
        is_trained = any(path.startswith(_BLOCKS) for path in trained)
        moments.append(around + block_bytes(model, rows, stage, tensor, context, is_trained))
        moments.append(around + loss_bytes(model, rows, stage, tensor, context))
    copies = 2 if stage.grad_accum_steps > 1 else 1  # the sum, and what is added to it
    parts = {
        "parameters": _shard_bytes(stored, shards),
        "optimiser": _optimiser_bytes(stage, trained, shards),
        "gradients": copies * _shard_bytes(trained, shards),
        "weights as they are computed with": _cast_bytes(model, stage, stored, shards),
        "activations kept (estimate)": kept,
        "at work (estimate)": max(moments),
    }
    return parts | {"all": sum(parts.values())}


def _num_shards(model: ModelConfig, params: PyTree, mesh: dict[str, int]) -> dict[str, int]:
    """Returns over how many devices each parameter is split."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    names = jax.tree.leaves(logical_axes(model), is_leaf=is_names)
    counts = []
    for axes, shape in zip(names, shapes, strict=True):
        used = [entry for entry in spec_for(axes, shape, mesh) if entry is not None]
        flat = [(entry,) if isinstance(entry, str) else entry for entry in used]
        counts.append(math.prod(mesh[axis] for group in flat for axis in group))
    return dict(zip(flatten(params), counts, strict=True))


def _shard_bytes(tree: PyTree, shards: dict[str, int]) -> float:
    """Returns the bytes of one device's parts; what is no parameter (new rows) is whole."""
    return sum(
        leaf.size * leaf.dtype.itemsize / shards.get(path, 1) for path, leaf in _leaves(tree)
    )


def _leaves(tree: PyTree) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Returns arrays with their paths, of a tree or of a dict by path."""
    if isinstance(tree, dict) and not any(isinstance(node, dict) for node in tree.values()):
        return list(tree.items())
    return list(flatten(tree).items())


def _optimiser_bytes(stage: StageConfig, trained: dict, shards: dict[str, int]) -> float:
    """Returns the bytes of the optimiser's state, split as the trained part is on average."""
    optimizer = make_optimizer(
        stage.optimizer, stage.total_steps, stage.global_batch_size, [*trained]
    )
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in trained.values())
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, trained))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return size * _shard_bytes(trained, shards) / max(1, whole)


def _cast_bytes(
    model: ModelConfig, stage: StageConfig, stored: PyTree, shards: dict[str, int]
) -> float:
    """Returns the bytes of the decoder's blocks in the dtype of products, if stored in another."""
    dtype = np.dtype(model.dtype)
    leaves = flatten(stored).items() if stage.objective == "vpit" else ()
    blocks = ((path, leaf) for path, leaf in leaves if path.startswith(_BLOCKS))
    return sum(
        leaf.size * dtype.itemsize / shards[path] for path, leaf in blocks if leaf.dtype != dtype
    )
