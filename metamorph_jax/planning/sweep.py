"""Other micro-batches, remat and meshes for the same recipe and pod, ranked.

All are counted; the best few are compiled, because only then is their memory known.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from metamorph_jax.config.schema_run import MeshConfig, RunConfig, StageConfig
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.chips import GIB
from metamorph_jax.planning.plan import StagePlan, check_recipe, plan_stage
from metamorph_jax.planning.topology import Pod

NUM_COMPILED = 3
REMATS = ("none", "dots", "attention", "full")  # from fast to lean


@dataclasses.dataclass(frozen=True)
class Choice:
    """A variant of a recipe, and its plan.

    Attributes:
        flags: that make the variant, as typed behind the recipe.
    """

    flags: str
    plan: StagePlan

    @property
    def rank(self) -> tuple:
        """Sorts first what fits, then what is faster: by its bound, then by all three times."""
        times = self.plan.roofline
        return (not self.plan.fits, round(times.bound_secs, 3), sum(times.times.values()))


def sweep(config: RunConfig, stage: StageConfig, pod: Pod) -> list[Choice]:
    """Returns variants of a stage, the best first; the first few of them are compiled."""
    counted = [
        (variant, Choice(flags, plan_stage(variant, changed, pod, is_compiled=False)))
        for flags, variant, changed in _variants(config, stage, pod)
    ]
    counted.sort(key=lambda pair: pair[1].rank)
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
    for mesh, remat in itertools.product(_meshes(pod.num_devices), remats):
        rows, left = divmod(stage.global_batch_size, mesh.data * mesh.fsdp)
        for steps in (number for number in range(1, rows + 1) if not left and rows % number == 0):
            changed = dataclasses.replace(stage, grad_accum_steps=steps)
            llm = dataclasses.replace(config.model.llm, remat=remat)
            model = dataclasses.replace(config.model, llm=llm)
            stages = tuple(changed if each == stage else each for each in config.stages)
            variant = dataclasses.replace(config, model=model, stages=stages, mesh=mesh)
            if _can_run(lambda v=variant, c=changed: check_recipe(v, [c], pod)):
                flags = (
                    f"--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
                    f"--config.mesh.tensor={mesh.tensor} --config.model.llm.remat={remat} "
                    f"--config.stages.{stage.name}.grad_accum_steps={steps}"
                )
                yield flags, variant, changed


def _meshes(num_devices: int) -> Iterator[MeshConfig]:
    """Yields meshes of all devices: little or no tensor parallelism, replicas in powers of two."""
    for tensor in (1, 2, 4, 8):
        rest, left = divmod(num_devices, tensor)
        data = 1
        while not left and rest % data == 0 and data <= 16 and rest // data >= 1:
            yield MeshConfig(data=data, fsdp=rest // data, tensor=tensor)
            data *= 2


def _can_run(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


def table(choices: list[Choice], num_shown: int = 12) -> str:
    """Returns the ranking as text."""
    lines = ["  fits  GiB a chip   step s   MFU at most   source    flags"]
    for choice in choices[:num_shown]:
        plan = choice.plan
        lines.append(
            f"  {'yes' if plan.fits else 'no':5}{plan.needed_bytes / GIB:11.2f}"
            f"{plan.roofline.bound_secs:9.3f}{plan.roofline.mfu:13.1%}"
            f"   {plan.bytes_per_chip['needed'].source:9} {choice.flags}"
        )
    if len(choices) > num_shown:
        lines.append(f"  ({len(choices) - num_shown} more)")
    return "\n".join(lines)
