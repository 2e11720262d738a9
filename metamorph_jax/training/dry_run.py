"""`--dry_run`: what a run would do, from shapes alone; nothing is allocated.

Memory is arithmetic, not a measurement: what the state needs is exact, activations are estimated.
"""

from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview

from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.data.spans import example_spans, spans_as_text
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.flops import num_params
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.schedule import num_warmup_steps, peak_learning_rate
from metamorph_jax.sharding.mesh import AXIS_NAMES
from metamorph_jax.training.memory import estimate_memory
from metamorph_jax.training.program import (
    check_shapes,
    full_row_flops,
    select_trained,
    stage_optimizer,
)
from metamorph_jax.training.stages import check_vocabulary, describe, missing_sources, stage_data
from metamorph_jax.trees import flatten

GIB = 2**30


def dry_run(config: RunConfig) -> None:
    """Prints parameters, batch arithmetic, memory per device and one sample of a recipe.

    A tokenizer or data that is not here yet is listed at the end; everything else is checked.

    Raises:
        UserError: the recipe cannot run on its own mesh.
    """
    params = abstract_params(config.model)
    print(f"recipe {config.name}, seed {config.seed}\n")
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    print("\nparameters (true vocabulary, padding rows left out)")
    counts = num_params(config.model)
    for part, number in counts.items():
        print(f"  {part:28}{number:>18,}")
    print(f"  {'all':28}{sum(counts.values()):>18,}\n")
    mesh = mesh_sizes(config)
    print(f"mesh {mesh}: {np.prod(list(mesh.values()))} devices ({jax.device_count()} here)")
    for stage in config.stages:
        _print_stage(config, stage, params, mesh)
    missing = _print_sample(config)
    if missing:
        print("\nnot here yet, and needed before this can run:")
        for message in missing:
            print(f"  - {message}")


def mesh_sizes(config: RunConfig) -> dict[str, int]:
    """Returns devices per mesh axis; an open (-1) axis takes the devices that are here."""
    sizes = {axis: getattr(config.mesh, axis) for axis in AXIS_NAMES}
    fixed = int(np.prod([size for size in sizes.values() if size > 0]))
    return {
        axis: size if size > 0 else max(1, jax.device_count() // fixed)
        for axis, size in sizes.items()
    }


def _print_stage(config: RunConfig, stage: StageConfig, params: dict, mesh: dict[str, int]) -> None:
    """Prints batch arithmetic and memory of one stage."""
    num_shards = mesh["data"] * mesh["fsdp"]
    check_shapes(config, stage, mesh)
    selection = select_trained(config, stage)
    stage_optimizer(stage, selection, params)  # for its checks
    trained = sum(leaf.size for leaf in jax.eval_shape(selection.split, params).values())
    total = sum(leaf.size for leaf in flatten(params).values())
    batch, data = stage.global_batch_size, stage.data
    per_device = batch // (num_shards * stage.grad_accum_steps)
    print(f"\nstage {stage.name}: {stage.objective}, {stage.total_steps:,} steps")
    print(f"  trained           {trained:,} of {total:,} ({', '.join(stage.trained)})")
    peak = peak_learning_rate(stage.optimizer, batch)
    warmup = num_warmup_steps(stage.optimizer, stage.total_steps)
    print(f"  learning rate     {peak:.3e} peak, {warmup} warm-up steps, cosine to 0")
    print(
        f"  batch             {batch} = {num_shards} shards x {stage.grad_accum_steps} "
        f"accumulated x {per_device} rows"
    )
    if stage.objective == "vpit":
        tokens = batch * data.max_seq_len
        print(
            f"  tokens per step   {tokens:,} ({data.max_seq_len:,} a row, up to "
            f"{data.max_images} images); {tokens * stage.total_steps:,} in all"
        )
    print(f"  model FLOPs       {full_row_flops(config.model, stage):.4g} per step, rows full")
    print("  memory per device")
    for name, size in estimate_memory(config.model, stage, params, selection, mesh).items():
        print(f"    {name:40}{size / GIB:9.3f} GiB")


def _print_sample(config: RunConfig) -> list[str]:
    """Reads all data, prints the first example of the last stage; returns what was missing."""
    missing = [
        f"config.model.init_from: {folder} is no folder"
        for folder in config.model.init_from
        if not Path(folder).is_dir()
    ]
    missing += [
        f"config.stages.{stage.name}.data.sources: {path} is no file"
        for stage in config.stages
        for path in missing_sources(stage)
    ]
    try:
        tokenizer = load_tokenizer(config.tokenizer.path)
    except UserError as error:
        return [f"config.tokenizer.path: {error}", *missing]
    check_vocabulary(config, tokenizer)
    if missing:
        return missing
    print("\ndata (records and tags are checked; images are opened when they are needed)")
    for stage in config.stages:
        data = stage_data(config, stage, tokenizer)
        print(f"  {stage.name}: {describe(data)}")
    if stage.objective == "vpit":
        first = int(data.table.usable[0])
        print(f"\nfirst example of stage {stage.name}: [supervised text], <answer image>\n")
        print(spans_as_text(example_spans(data.example(first), tokenizer)))
    return []
