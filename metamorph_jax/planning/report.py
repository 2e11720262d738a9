"""A plan as text and as JSON. Every number says whether it is compiled, counted or assumed."""

import math

from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.metrics.chips import GIB
from metamorph_jax.planning.advice import advice
from metamorph_jax.planning.plan import MIN_MARGIN, StagePlan

GIGA = 1e9


def describe(config: RunConfig, plan: StagePlan) -> str:
    """Returns the plan of a stage as text."""
    blocks = [_heading(config, plan), _memory(plan), _flops(plan), _exchanges(plan), _times(plan)]
    return "\n".join([*blocks, verdict(plan)])


def verdict(plan: StagePlan) -> str:
    """Returns whether a stage fits, and what to change."""
    name = f"{plan.stage.name} on {plan.pod.name}"
    word = "fits" if plan.fits else "does not fit"
    source = plan.bytes_per_chip["needed"].source
    limit = plan.pod.chip.hbm_bytes
    over = (plan.needed_bytes - limit) / GIB
    rest = f"{plan.margin:.0%} to spare" if over <= 0 else f"{over:.2f} GiB too many"
    text = (
        f"{word}: {name} needs {plan.needed_bytes / GIB:.2f} of {limit / GIB:.2f} GiB a chip, "
        f"{rest} ({source})"
    )
    return "\n".join([text, *(f"  - {line}" for line in advice(plan))]) + "\n"


def _heading(config: RunConfig, plan: StagePlan) -> str:
    stage, pod = plan.stage, plan.pod
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = stage.global_batch_size // (shards * stage.grad_accum_steps)
    how = f"compiled in {plan.compile_secs:.0f} s" if plan.is_compiled else "by arithmetic only"
    return (
        f"stage {stage.name} of {config.name} on {pod.name}: {pod.num_devices} devices, "
        f"mesh {plan.mesh}, {how}\n"
        f"  batch {stage.global_batch_size} rows = {shards} shards x {stage.grad_accum_steps} "
        f"accumulated x {rows} rows of {stage.data.max_seq_len:,} positions"
    )


def _memory(plan: StagePlan) -> str:
    lines = ["memory per chip"]
    for name, number in plan.bytes_per_chip.items():
        lines.append(f"  {name:40}{number.value / GIB:10.3f} GiB   {number.source}")
    limit = plan.pod.chip.hbm_bytes
    lines.append(
        f"  {'of what a program may use':40}{limit / GIB:10.3f} GiB   assumed (chip table)"
    )
    if plan.is_compiled:
        counted = f"{plan.arithmetic_bytes / GIB:10.3f} GiB   counted"
        lines.append(f"  {'by arithmetic instead, without gaps':40}{counted}")
    else:
        lines.append("  gaps that a compiler leaves between arrays are not counted")
    return "\n".join(lines)


def _flops(plan: StagePlan) -> str:
    hardware, source = plan.hardware_flops
    return "\n".join(
        [
            "FLOPs per step, all chips",
            f"  {'model (rows full, all image places used)':40}{plan.model_flops:14.4g}   counted",
            f"  {'hardware (with what is computed again)':40}{hardware:14.4g}   {source}",
            f"  {'hardware / model':40}{hardware / plan.model_flops:14.3f}",
        ]
    )


def _exchanges(plan: StagePlan) -> str:
    source = "compiled" if plan.activation_bytes is not None else "counted"
    lines = [f"exchanged per chip and step ({source})"]
    for row in plan.collectives:
        count = f"{row.count:,} times" if row.count else ""
        lines.append(
            f"  {row.kind:20}over {row.axis:12}{count:>14}{row.num_bytes / GIGA:12.2f} GB"
            f"{row.seconds:10.3f} s"
        )
    if not plan.collectives:
        lines.append("  nothing")
    if plan.minimum_bytes:
        ratio = plan.exchanged_bytes / plan.minimum_bytes
        lines.append(
            f"  all: {plan.exchanged_bytes / GIGA:.2f} GB, {ratio:.2f} times what FSDP exchanges "
            f"at least in bfloat16 ({plan.minimum_bytes / GIGA:.2f} GB, counted)"
        )
    if plan.activation_bytes is not None:
        lines.append(f"  of it activations or logits: {plan.activation_bytes / GIGA:.2f} GB")
    return "\n".join(lines)


def _times(plan: StagePlan) -> str:
    times, stage, chip = plan.roofline, plan.stage, plan.pod.chip
    exchanged = "compiled" if plan.activation_bytes is not None else "counted"
    rows = [
        (
            "matrix unit",
            times.matrix_secs,
            plan.hardware_flops.source,
            f"{chip.peak_flops:.4g} FLOP/s",
        ),
        (
            "memory (HBM)",
            times.hbm_secs,
            plan.hbm_bytes.source,
            f"{chip.hbm_bytes_per_sec:.3g} B/s",
        ),
        (
            "interconnect",
            times.interconnect_secs,
            exchanged,
            f"{chip.link_bytes_per_sec:.3g} B/s a link",
        ),
    ]
    lines = ["time per step, at least (peaks are assumed: chip table)"]
    for name, seconds, source, peak in rows:
        share = seconds / times.matrix_secs
        lines.append(f"  {name:20}{seconds:10.3f} s  {share:6.2f} of matrix   {source}, {peak}")
    tokens = times.tokens_per_sec
    lines += [
        f"  bound by {times.bound_by}: {times.bound_secs:.3f} s, {tokens:,.0f} tokens/s "
        f"({tokens / plan.pod.num_devices:,.0f} a chip), MFU at most {times.mfu:.1%}",
        f"  {stage.total_steps:,} steps of the recipe: {_duration(times.days)} at least; "
        f"{_duration(times.days / 0.6)} at 0.6 of the bound (assumed)",
    ]
    return "\n".join(lines)


def _duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"


def as_json(config: RunConfig, plans: list[StagePlan]) -> dict:
    """Returns the plans as JSON: whether all stages fit, and per stage where the numbers come from.

    The top level has `fits`, `bytes_per_chip`, `flops`, `collectives`, `roofline`; each but the
    first is a dict by stage.
    """
    return {
        "recipe": config.name,
        "topology": plans[0].pod.name,
        "mesh": plans[0].mesh,
        "fits": all(plan.fits for plan in plans),
        "bytes_per_chip": {plan.stage.name: _memory_json(plan) for plan in plans},
        "flops": {plan.stage.name: _flops_json(plan) for plan in plans},
        "collectives": {plan.stage.name: _exchanges_json(plan) for plan in plans},
        "roofline": {plan.stage.name: _times_json(plan) for plan in plans},
        "advice": {plan.stage.name: advice(plan) for plan in plans},
    }


def _memory_json(plan: StagePlan) -> dict:
    parts = {
        name: {"bytes": number.value, "source": number.source}
        for name, number in plan.bytes_per_chip.items()
    }
    return {
        "parts": parts,
        "needed": plan.needed_bytes,
        "limit": plan.pod.chip.hbm_bytes,
        "margin": plan.margin,
        "min_margin": MIN_MARGIN,
        "arithmetic": plan.arithmetic_bytes,
        "fits": plan.fits,
    }


def _flops_json(plan: StagePlan) -> dict:
    hardware, source = plan.hardware_flops
    return {
        "model": plan.model_flops,
        "model_source": "counted",
        "hardware": hardware,
        "hardware_source": source,
        "hardware_per_model": hardware / plan.model_flops,
    }


def _exchanges_json(plan: StagePlan) -> dict:
    ratio = plan.exchanged_bytes / plan.minimum_bytes if plan.minimum_bytes else math.nan
    rows = [
        {
            "kind": row.kind,
            "axis": row.axis,
            "count": row.count,
            "bytes": row.num_bytes,
            "secs": row.seconds,
        }
        for row in plan.collectives
    ]
    return {
        "rows": rows,
        "bytes": plan.exchanged_bytes,
        "minimum_bytes": plan.minimum_bytes,
        "per_minimum": None if math.isnan(ratio) else ratio,
        "activation_bytes": plan.activation_bytes,
        "source": "compiled" if plan.activation_bytes is not None else "counted",
    }


def _times_json(plan: StagePlan) -> dict:
    times = plan.roofline
    return {
        "matrix_secs": times.matrix_secs,
        "hbm_secs": times.hbm_secs,
        "interconnect_secs": times.interconnect_secs,
        "bound_secs": times.bound_secs,
        "bound_by": times.bound_by,
        "tokens_per_sec": times.tokens_per_sec,
        "mfu_bound": times.mfu,
        "steps": plan.stage.total_steps,
        "days": times.days,
        "compile_secs": plan.compile_secs,
        "peaks_source": f"assumed: {plan.pod.chip.source}",
    }
