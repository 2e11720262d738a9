"""What a step costs by formula, for pods without a compiler and for sweeps.

Coarser than compiled text: one exchange per kind, and activations by a factor.
"""

from collections.abc import Mapping

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.metrics.flops import contrastive_flops, forward_flops, vision_flops
from metamorph_jax.planning.collectives import CollectiveSum
from metamorph_jax.planning.topology import Pod
from metamorph_jax.training.program import full_row_counts, full_row_flops

_COMPUTED_BYTES = 2  # bfloat16, in which weights and their gradients travel
# Reads and writes of the residual stream's width per token and block, forwards and backwards, in an
# XLA program: norms, projections and their gradients. Seen in compiled text of vpit_8b: 60 to 90.
_PASSES_PER_BLOCK = 80


def counted_hardware_flops(model: ModelConfig, stage: StageConfig) -> float:
    """Returns the FLOPs of a step, with the second forward pass of full remat."""
    flops = full_row_flops(model, stage)
    if stage.objective == "contrastive":
        again = contrastive_flops(model, stage.global_batch_size) / 3
        return flops + (again if model.vision.remat == "full" else 0.0)
    if model.llm.remat in ("none", "dots"):
        return flops
    counts = full_row_counts(model, stage)
    return flops + forward_flops(model, counts) - counts.num_images * vision_flops(model.vision)


def counted_hbm_bytes(
    model: ModelConfig, stage: StageConfig, sizes: Mapping[str, int], params: Mapping
) -> float:
    """Returns the bytes of weights, state and activations that a device reads and writes."""
    shards = _parameter_shards(sizes) * sizes["tensor"]
    number = sum(leaf.size for leaf in params.values())
    weights = 3 * 2 * number * _COMPUTED_BYTES / sizes["tensor"] * stage.grad_accum_steps
    state = number * 4 * (2 * 3 + 1) / shards  # three arrays read and written, gradients read
    rows = stage.global_batch_size / (sizes["data"] * _parameter_shards(sizes))
    tokens = rows * stage.data.max_seq_len
    stream = tokens * model.llm.embed_dim * _COMPUTED_BYTES * model.llm.num_layers
    return weights + state + stream * _PASSES_PER_BLOCK / sizes["tensor"]


def minimum_exchange_bytes(
    stage: StageConfig, sizes: Mapping[str, int], params: Mapping, trained: Mapping
) -> float:
    """Returns what FSDP exchanges at least: gathered forwards and backwards, gradients scattered.

    In bfloat16: three times the trained parameters, once the frozen tower, twice what gradients
    pass through without being trained; for each micro-batch.
    """
    gathers, scatters = _exchanged_numbers(params, trained)
    factor = _COMPUTED_BYTES * stage.grad_accum_steps / sizes["tensor"]
    return (gathers + scatters) * factor if _parameter_shards(sizes) > 1 else 0.0


def counted_collectives(
    model: ModelConfig,
    stage: StageConfig,
    sizes: Mapping[str, int],
    pod: Pod,
    params: Mapping,
    trained: Mapping,
) -> list[CollectiveSum]:
    """Returns the least that is exchanged, at the bandwidth of the chip.

    That is FSDP's gathers and scatters, gradients over replicas, and with tensor parallelism the
    sums behind attention and MLP: two a block forwards, two backwards, two where it is recomputed.
    """
    gathers, scatters = _exchanged_numbers(params, trained)
    steps, tensor, shards = stage.grad_accum_steps, sizes["tensor"], _parameter_shards(sizes)
    rows = []

    def add(kind: str, axis: str, members: int, numbers: float) -> None:
        num_bytes = numbers * _COMPUTED_BYTES / tensor * (2 if kind == "all-reduce" else 1)
        if members > 1 and num_bytes:
            seconds = num_bytes * (members - 1) / members / _bandwidth(pod, members)
            rows.append(CollectiveSum(kind, axis, 0, num_bytes, seconds))

    add("all-gather", "fsdp", shards, gathers * steps)
    add("reduce-scatter", "fsdp", shards, scatters * steps)
    add("all-reduce", "data", sizes["data"], scatters / shards)
    if stage.objective == "vpit":
        tokens = stage.global_batch_size * stage.data.max_seq_len / (sizes["data"] * shards)
        sums = 4 if model.llm.remat in ("none", "dots") else 6
        passed = tokens * model.llm.embed_dim * model.llm.num_layers * sums
        add("all-reduce", "tensor", tensor, passed * tensor)  # these are not split over it
    return rows


def _parameter_shards(sizes: Mapping[str, int]) -> int:
    """Returns over how many devices FSDP splits a parameter."""
    return sizes["fsdp"] * sizes["context"]


def _exchanged_numbers(params: Mapping, trained: Mapping) -> tuple[float, float]:
    """Returns how many numbers are gathered and how many scattered, per micro-batch."""
    gathers = scatters = 0.0
    backward = any(not path.startswith("vision_tower") for path in trained)
    for path, leaf in params.items():
        passes_gradients = path in trained or (
            backward and not path.startswith("vision_tower") and "embed_tokens" not in path
        )
        gathers += leaf.size * (2 if passes_gradients else 1)
        scatters += leaf.size if path in trained else 0
    return gathers, scatters


def _bandwidth(pod: Pod, members: int) -> float:
    """Returns bytes per second into a device, all links of the torus taken to be used."""
    chip = pod.chip
    if not chip.is_tpu:
        within = members <= chip.devices_per_host
        return chip.link_bytes_per_sec if within else chip.network_bytes_per_sec
    links = sum(
        2 if pod.is_ring(axis) else 1 for axis, extent in enumerate(pod.extents) if extent > 1
    )
    return chip.link_bytes_per_sec * max(1, links)
