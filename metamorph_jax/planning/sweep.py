"""Other micro-batches, remat and meshes for the same recipe and pod, ranked.

All are counted; the best few are compiled, because only then is their memory known.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from metamorph_jax.config.schema_run import MeshConfig, RunConfig, StageConfig
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.chips import GIB
from metamorph_jax.planning.plan import StagePlan, check_recipe, plan_stage
from metamorph_jax.planning.topology import Pod
from metamorph_jax.sharding.mesh import AXIS_NAMES, mesh_shape

NUM_COMPILED = 3
REMATS = ("none", "dots", "attention", "full")  # from fast to lean


@dataclasses.dataclass(frozen=True)
class Choice:
    """A variant of a recipe, and its plan.

    Attributes:
        flags: that make the variant, as typed behind the recipe; none is the recipe itself.
    """

    flags: str
    plan: StagePlan

    @property
    def rank(self) -> tuple:
        """Sorts first what fits, then what is faster: by its bound, then by all three times."""
        times = self.plan.roofline
        return (not self.plan.fits, float(f"{times.bound_secs:.3g}"), sum(times.times.values()))


def sweep(config: RunConfig, stage: StageConfig, pod: Pod) -> list[Choice]:
    """Returns variants of a stage, the best first; the first few of them are compiled.

    Of those that differ in their micro-batches only, the best one stands for all.
    """
    counted = [
        (variant, Choice(flags, plan_stage(variant, changed, pod, is_compiled=False)))
        for flags, variant, changed in _variants(config, stage, pod)
    ]
    counted.sort(key=lambda pair: pair[1].rank)
    counted = _one_of_each(counted)
    if not pod.is_compiled_for:
        return [choice for _, choice in counted]
    best = [
        Choice(choice.flags, plan_stage(variant, choice.plan.stage, pod))
        for variant, choice in counted[:NUM_COMPILED]
    ]
    return sorted(best, key=lambda choice: choice.rank) + [
        choice for _, choice in counted[NUM_COMPILED:]
    ]


def _variants(
    config: RunConfig, stage: StageConfig, pod: Pod
) -> Iterator[tuple[str, RunConfig, StageConfig]]:
    """Yields (flags, recipe, its stage) of all that could run on the pod."""
    remats = REMATS if stage.objective == "vpit" else (config.model.llm.remat,)
    for mesh, remat in itertools.product(_meshes(pod.num_devices, config.mesh.context), remats):
        rows, left = divmod(stage.global_batch_size, mesh.data * mesh.fsdp)
        for steps in (number for number in range(1, rows + 1) if not left and rows % number == 0):
            changed = dataclasses.replace(stage, grad_accum_steps=steps)
            llm = dataclasses.replace(config.model.llm, remat=remat)
            model = dataclasses.replace(config.model, llm=llm)
            stages = tuple(changed if each == stage else each for each in config.stages)
            variant = dataclasses.replace(config, model=model, stages=stages, mesh=mesh)
            if _can_run(lambda v=variant, c=changed: check_recipe(v, [c], pod)):
                yield _flags(config, stage, variant, steps), variant, changed


def _one_of_each(
    counted: list[tuple[RunConfig, Choice]],
) -> list[tuple[RunConfig, Choice]]:
    """Returns of each mesh and remat policy the first, and the recipe itself wherever it stands."""
    seen, kept = set(), []
    for variant, choice in counted:
        key = variant.mesh, variant.model.llm.remat
        if key not in seen or not choice.flags:
            kept.append((variant, choice))
        seen.add(key)
    return kept


def _flags(config: RunConfig, stage: StageConfig, variant: RunConfig, steps: int) -> str:
    """Returns what to type behind the recipe to have the variant: only what differs."""
    sizes = mesh_shape(config.mesh, math.prod(dataclasses.astuple(variant.mesh)))
    flags = {
        f"mesh.{axis}": (size, getattr(variant.mesh, axis))
        for axis, size in zip(AXIS_NAMES, sizes, strict=True)
    }
    flags["model.llm.remat"] = config.model.llm.remat, variant.model.llm.remat
    flags[f"stages.{stage.name}.grad_accum_steps"] = stage.grad_accum_steps, steps
    return " ".join(f"--config.{path}={new}" for path, (old, new) in flags.items() if old != new)


def _meshes(num_devices: int, context: int) -> Iterator[MeshConfig]:
    """Yields meshes of all devices: little or no tensor parallelism, replicas in powers of two.

    How many devices share a row is left to the recipe: it follows from the length of its rows.
    """
    for tensor in (1, 2, 4, 8):
        rest, left = divmod(num_devices, tensor * max(1, context))
        data = 1
        while not left and rest % data == 0 and data <= 16 and rest // data >= 1:
            yield MeshConfig(data=data, fsdp=rest // data, tensor=tensor, context=max(1, context))
            data *= 2


def _can_run(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


def table(choices: list[Choice], num_shown: int = 12) -> str:
    """Returns the ranking as text: the first few, and where the recipe itself stands."""
    lines = ["  place  fits  GiB a chip   step s   MFU at most   source    flags"]
    for place, choice in enumerate(choices, 1):
        if place > num_shown and choice.flags:
            continue
        plan = choice.plan
        lines.append(
            f"  {place:5}  {'yes' if plan.fits else 'no':4}{plan.needed_bytes / GIB:12.2f}"
            f"{plan.roofline.bound_secs:9.3g}{plan.roofline.mfu:13.1%}   "
            f"{plan.bytes_per_chip['needed'].source:9} {choice.flags or '(the recipe as it is)'}"
        )
    lines.append(
        f"  {len(choices)} choices of mesh and remat, each with the micro-batches that suit it "
        "best. Steps are bounds.\n  Counted memory is without the gaps between arrays that a "
        "compiler leaves: plan a choice with its flags before it is booked."
    )
    return "\n".join(lines)
