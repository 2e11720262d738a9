"""What to change in a recipe that does not fit, or that waits for something."""

import math

from metamorph_jax.planning.plan import MIN_MARGIN, StagePlan

GIB = 2**30


def advice(plan: StagePlan) -> list[str]:
    """Returns what to change, each with its reason and its key; nothing where all is well."""
    found = [] if plan.fits else _for_memory(plan)
    times = plan.roofline
    if plan.fits and times.interconnect_secs > 0.8 * times.matrix_secs:
        found += _for_interconnect(plan)
    if plan.fits and times.hbm_secs > times.matrix_secs:
        found.append(
            f"memory is busy for {times.hbm_secs:.2f} s of every {times.matrix_secs:.2f} s of "
            "matrix products: take more rows at once (fewer grad_accum_steps), or an attention "
            "kernel that does not write its scores"
        )
    if plan.activation_bytes:
        found.append(
            f"{plan.activation_bytes / GIB:.1f} GiB of activations are exchanged in each step, "
            "which data parallelism should not do: please report the recipe and this plan"
        )
    return found


def _for_memory(plan: StagePlan) -> list[str]:
    stage, held = plan.stage, plan.bytes_per_chip
    where = f"--config.stages.{stage.name}"
    limit = plan.pod.chip.hbm_bytes * (1 - MIN_MARGIN)
    state = sum(held[name].value for name in held if name.startswith(("parameters", "optimiser")))
    found = [
        f"{(plan.needed_bytes - limit) / GIB:.2f} GiB a chip are missing of what would leave "
        f"{MIN_MARGIN:.0%} free ({limit / GIB:.2f} GiB)"
    ]
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = stage.global_batch_size // (shards * stage.grad_accum_steps)
    if rows > 1 and state < limit:
        share = stage.global_batch_size // shards
        # Whatever is no state shrinks with the rows at best: fewer can never be enough.
        wanted = rows * (limit - state) / (plan.needed_bytes - state)
        steps = _steps_for(share, stage.grad_accum_steps, wanted)
        found.append(
            f"{where}.grad_accum_steps={steps} has {share // steps} instead of {rows} rows on a "
            "chip at once: activations shrink with them"
        )
    if plan.mesh["data"] > 1:
        found.append(
            f"--config.mesh.data=1 --config.mesh.fsdp={shards}: parameters and optimiser are "
            f"split over all chips instead of {plan.mesh['fsdp']}"
        )
    if state > limit:
        chips = plan.pod.num_devices * math.ceil(state / limit * 1.25)
        found.append(
            f"parameters and optimiser alone are {state / GIB:.2f} GiB a chip: take a larger pod "
            f"(about {chips} of these chips), or a leaner optimiser"
        )
    return found


def _steps_for(rows: int, steps: int, wanted: float) -> int:
    """Returns the first larger number of micro-batches with at most `wanted` rows in each, or all.

    It divides a chip's `rows`.
    """
    larger = [number for number in range(steps + 1, rows + 1) if rows % number == 0]
    return next((number for number in larger if rows / number <= wanted), larger[-1])


def _for_interconnect(plan: StagePlan) -> list[str]:
    stage, times = plan.stage, plan.roofline
    text = (
        f"exchanging takes {times.interconnect_secs:.2f} s, matrix products "
        f"{times.matrix_secs:.2f} s: "
    )
    if stage.grad_accum_steps > 1:
        return [
            f"{text}every micro-batch gathers all weights again; fewer "
            f"--config.stages.{stage.name}.grad_accum_steps exchange less"
        ]
    return [f"{text}more rows per chip (a larger batch, or fewer chips) hide it"]
