"""The part of a stage that is compiled: selection, optimiser, layout, step. Needs no data.

`stages.py` puts data beside it and trains; `planning/` compiles it for a pod that is not here, from
the shapes that `abstract_batch` gives.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.data.rows import Slots, empty_rows, pixel_slots
from metamorph_jax.data.views import view_layout
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.flops import BatchCounts, contrastive_flops, model_flops
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.optimizer import make_optimizer
from metamorph_jax.optim.selection import Selection, select
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.training.state import StateLayout, state_layout
from metamorph_jax.training.step import make_train_step
from metamorph_jax.typing import PyTree


class StageProgram(NamedTuple):
    """What is compiled for a stage, and how its state lies.

    Attributes:
        selection: the trained part.
        optimizer: over it.
        layout: shapes and shardings of the state.
        train_step: jitted (state, batch) -> (state, metrics).
    """

    selection: Selection
    optimizer: optax.GradientTransformation
    layout: StateLayout
    train_step: Callable


def stage_program(
    config: RunConfig, stage: StageConfig, mesh: Mesh, token_rows: tuple[int, ...]
) -> StageProgram:
    """Returns the program of a stage on `mesh`; allocates nothing and reads no files.

    Args:
        config: the recipe.
        stage: of the recipe.
        mesh: of devices, which need not be here.
        token_rows: of the two image tokens, for stages that train them.
    """
    selection = select_trained(config, stage, token_rows)
    optimizer = stage_optimizer(stage, selection, abstract_params(config.model))
    layout = state_layout(config.model, selection, optimizer, mesh, frozen_dtype=stage.frozen_dtype)
    step = make_train_step(config.model, stage, selection, optimizer, layout, mesh)
    return StageProgram(selection, optimizer, layout, step)


def select_trained(
    config: RunConfig, stage: StageConfig, token_rows: tuple[int, ...] = (0, 1)
) -> Selection:
    """Returns which parameters a stage trains.

    Args:
        config: the recipe.
        stage: of the recipe.
        token_rows: of the two image tokens; which they are does not matter where only shapes do.
    """
    rows = token_rows if stage.train_new_token_rows else ()
    where = f"config.stages.{stage.name}"
    return select(abstract_params(config.model), stage.trained, stage.excluded, rows, where)


def stage_optimizer(
    stage: StageConfig, selection: Selection, params: PyTree
) -> optax.GradientTransformation:
    """Returns the stage's optimiser over the selected part of `params`."""
    paths = list(jax.eval_shape(selection.split, params))
    return make_optimizer(stage.optimizer, stage.total_steps, stage.global_batch_size, paths)


def abstract_batch(model: ModelConfig, stage: StageConfig, mesh: Mesh) -> dict:
    """Returns the shapes of a stage's batch, with their shardings; reads no data.

    Kept features are taken to be in the model's dtype, as `cache_features` writes them.
    """
    sharding, length = batch_sharding(mesh), stage.data.max_seq_len
    size = model.vision.image_size
    if stage.objective == "contrastive":
        row = {
            "images": np.zeros((1, size, size, 3), np.uint8),
            "tokens": np.zeros((1, length), np.int32),
            "token_mask": np.zeros((1, length), np.bool_),
            "caption_ids": np.zeros(1, np.int32),
        }
    else:
        views = view_layout(stage.data, size, model.visual_tokens.num_tokens)
        slots = pixel_slots(size)
        if stage.data.features:
            shape = (model.visual_tokens.num_tokens, model.visual_dim)
            slots = Slots("features", shape, jax.numpy.dtype(model.dtype))
        has_mixtures = views is not None and views.has_mixtures
        row = empty_rows(1, length, stage.data.max_images, slots, has_mixtures)
    return {
        name: jax.ShapeDtypeStruct(
            (stage.global_batch_size, *array.shape[1:]), array.dtype, sharding=sharding
        )
        for name, array in row.items()
    }


def full_row_counts(model: ModelConfig, stage: StageConfig) -> BatchCounts:
    """Returns what a step of VPiT holds if each row is one example with all images it can hold.

    What real rows hold depends on the data, which need not be here.
    """
    rows, length = stage.global_batch_size, stage.data.max_seq_len
    num_tokens = model.visual_tokens.num_tokens
    images = rows * min(stage.data.max_images, length // (num_tokens + 2))
    return BatchCounts(
        num_tokens=rows * length,
        sum_squared_lengths=rows * length**2,
        num_images=images,
        num_visual_targets=images * num_tokens,
    )


def full_row_flops(model: ModelConfig, stage: StageConfig) -> float:
    """Returns the model FLOPs of a step whose rows are full, see `full_row_counts`."""
    if stage.objective == "contrastive":
        return contrastive_flops(model, stage.global_batch_size)
    counts, has_features = full_row_counts(model, stage), bool(stage.data.features)
    return model_flops(model, counts, stage.trained, stage.excluded, has_features=has_features)


def check_shapes(config: RunConfig, stage: StageConfig, sizes: Mapping[str, int]) -> None:
    """Raises a UserError if the stage does not divide over a mesh, or its rows are too long.

    Args:
        config: the recipe.
        stage: of the recipe.
        sizes: devices per mesh axis.
    """
    check_batch_divides(stage, sizes["data"] * sizes["fsdp"])
    check_row_length(config.model, stage)
    check_heads_divide(config.model, sizes["tensor"])


def check_batch_divides(stage: StageConfig, num_shards: int) -> None:
    """Raises a UserError unless each device gets the same rows in every micro-batch."""
    if stage.global_batch_size % (num_shards * stage.grad_accum_steps):
        raise UserError(
            f"config.stages.{stage.name}.global_batch_size={stage.global_batch_size} does not "
            f"divide by {num_shards} batch shards (mesh data x fsdp) x grad_accum_steps="
            f"{stage.grad_accum_steps}; make it a multiple of "
            f"{num_shards * stage.grad_accum_steps}, or change the mesh"
        )


def check_row_length(model: ModelConfig, stage: StageConfig) -> None:
    """Raises a UserError if rows may hold longer sequences than the decoder is meant for."""
    longest, length = model.llm.max_seq_len, stage.data.max_seq_len
    if stage.objective == "vpit" and length > longest:
        raise UserError(
            f"config.stages.{stage.name}.data.max_seq_len={length} is more than "
            f"config.model.llm.max_seq_len={longest}, the longest sequence that the decoder is "
            "meant for (by its rotary embedding, or by a sliding window of its checkpoint); make "
            "rows shorter"
        )


def check_heads_divide(model: ModelConfig, tensor: int) -> None:
    """Raises a UserError unless the decoder's query heads can be shared out over `tensor` devices.

    Key/value heads that do not divide are replicated, and so are the tower's heads: both are small,
    and correct. Query heads that do not divide would replicate all of attention.
    """
    heads = model.llm.num_heads
    if heads % tensor:
        divisors = [number for number in range(1, heads + 1) if heads % number == 0]
        raise UserError(
            f"config.mesh.tensor={tensor}, but config.model.llm.num_heads={heads} does not divide "
            f"by it ({heads} = {heads // tensor} x {tensor} + {heads % tensor}): every device "
            "would compute all heads; set config.mesh.tensor to one of "
            f"{', '.join(map(str, divisors))}"
        )
