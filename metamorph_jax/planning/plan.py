"""The plan of one stage: what each device holds, computes and exchanges, and whether it fits."""

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.models.init import abstract_params
from metamorph_jax.planning.arithmetic import (
    counted_collectives,
    counted_hardware_flops,
    counted_hbm_bytes,
    minimum_exchange_bytes,
)
from metamorph_jax.planning.collectives import (
    CollectiveSum,
    activation_collectives,
    find_collectives,
    mesh_axes,
    sum_up,
)
from metamorph_jax.planning.compiling import Compiled, compile_lowered, lower_stage
from metamorph_jax.planning.hlo import walk
from metamorph_jax.planning.operations import matrix_flops, memory_bytes
from metamorph_jax.planning.roofline import Roofline, roofline
from metamorph_jax.planning.topology import Pod
from metamorph_jax.sharding.mesh import AXIS_NAMES, create_mesh, mesh_shape
from metamorph_jax.training.memory import estimate_memory
from metamorph_jax.training.program import (
    StageProgram,
    check_shapes,
    full_row_flops,
    select_trained,
    stage_optimizer,
)
from metamorph_jax.training.step import attention_backend
from metamorph_jax.trees import flatten

MIN_MARGIN = 0.08  # of the memory; less is no plan, since runs also hold what is not compiled


class Number(NamedTuple):
    """A number, and where it comes from: `compiled`, `counted` or `assumed`."""

    value: float
    source: str


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """Everything that is known of a stage on a pod before it runs.

    Attributes:
        mesh: devices per mesh axis.
        bytes_per_chip: what a device holds, by what it is; `needed` is the sum.
        arithmetic_bytes: the same sum by arithmetic alone.
        model_flops: of a step, all devices together, with full rows.
        hardware_flops: likewise, with what is computed again.
        hbm_bytes: that each device reads and writes in a step.
        collectives: per device and step.
        minimum_bytes: that FSDP has to exchange at least.
        activation_bytes: of large gathers and reductions that are of no parameter's shape; None
            without compiled text.
        compile_secs: how long compiling took; 0 without.
    """

    stage: StageConfig
    pod: Pod
    mesh: dict[str, int]
    bytes_per_chip: dict[str, Number]
    arithmetic_bytes: float
    model_flops: float
    hardware_flops: Number
    hbm_bytes: Number
    collectives: list[CollectiveSum]
    minimum_bytes: float
    activation_bytes: float | None
    roofline: Roofline
    compile_secs: float

    @property
    def needed_bytes(self) -> float:
        """What a device must hold."""
        return self.bytes_per_chip["needed"].value

    @property
    def margin(self) -> float:
        """The fraction of a device's memory that stays free; negative: that is missing."""
        return 1 - self.needed_bytes / self.pod.chip.hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether enough memory is left over."""
        return self.margin >= MIN_MARGIN

    @property
    def exchanged_bytes(self) -> float:
        """What each device takes part in exchanging, in a step."""
        return sum(row.num_bytes for row in self.collectives)

    @property
    def is_compiled(self) -> bool:
        """Whether there is a compiled program behind it."""
        return self.compile_secs > 0


def check_recipe(config: RunConfig, stages: list[StageConfig], pod: Pod) -> None:
    """Raises a UserError if a stage cannot run on the pod at all, before anything is compiled."""
    sizes = dict(zip(AXIS_NAMES, mesh_shape(config.mesh, pod.num_devices), strict=True))
    for stage in stages:
        check_shapes(config, stage, sizes)
        _model_on(config, stage, pod)
        selection = select_trained(config, stage)
        stage_optimizer(stage, selection, abstract_params(config.model))


def _model_on(config: RunConfig, stage: StageConfig, pod: Pod) -> ModelConfig:
    """Returns the model with the attention that it is going to have on the pod."""
    model = config.model
    if not pod.is_compiled_for:
        return model
    choice = attention_backend(model, stage, create_mesh(config.mesh, pod.devices))
    if choice is None:
        return model
    return dataclasses.replace(model, llm=dataclasses.replace(model.llm, attention=choice.name))


def plan_stage(
    config: RunConfig, stage: StageConfig, pod: Pod, is_compiled: bool = True
) -> StagePlan:
    """Returns the plan of a stage; compiles it if there is a compiler for the pod.

    Args:
        config: the recipe, as `check_recipe` passed it.
        stage: of the recipe.
        pod: the machine.
        is_compiled: False keeps to arithmetic.
    """
    if not (is_compiled and pod.is_compiled_for):
        return _counted_plan(config, stage, pod)
    mesh = create_mesh(config.mesh, pod.devices)
    program, lowered = lower_stage(config, stage, mesh)
    compiled = compile_lowered(lowered, f"{stage.name} for {pod.name}")
    if compiled.module is None:
        plan = _counted_plan(config, stage, pod)
        held = plan.bytes_per_chip | {"needed": Number(compiled.needed_bytes, "compiled")}
        return dataclasses.replace(plan, bytes_per_chip=held, compile_secs=compiled.seconds)
    return _compiled_plan(config, stage, pod, mesh, program, compiled)


def _compiled_plan(
    config: RunConfig,
    stage: StageConfig,
    pod: Pod,
    mesh: Mesh,
    program: StageProgram,
    compiled: Compiled,
) -> StagePlan:
    sizes = dict(mesh.shape)
    base = _counted_plan(config, stage, pod)
    flops = hbm = 0.0
    for visit in walk(compiled.module):
        flops += matrix_flops(visit) * visit.times
        hbm += memory_bytes(visit, compiled.module) * visit.times
    found = find_collectives(compiled.module, mesh.size)
    coordinates = pod.coordinates(list(mesh.devices.flat))
    exchanged = sum_up(found, sizes, pod, coordinates)
    params = jax.tree.leaves(program.layout.abstract.params)
    shapes = [leaf.shape for leaf in params]
    shapes += [leaf.sharding.shard_shape(leaf.shape) for leaf in params]  # what replicas reduce
    # Devices of `context` share rows: that they gather keys and values is what the axis is for.
    others = [item for item in found if mesh_axes(item.groups, sizes) != "context"]
    misplaced = activation_collectives(others, shapes)
    plan = dataclasses.replace(
        base,
        bytes_per_chip=_held(program, compiled),
        hardware_flops=Number(flops * mesh.size, "compiled"),
        hbm_bytes=Number(hbm, "compiled"),
        collectives=exchanged,
        activation_bytes=sum(item.num_bytes for item in misplaced),
        compile_secs=compiled.seconds,
    )
    return dataclasses.replace(plan, roofline=_times(plan))


def _held(program: StageProgram, compiled: Compiled) -> dict[str, Number]:
    """Returns what a device holds; what state and batch take beside their size is padding."""
    state = program.layout.abstract
    parameters, optimiser = _shard_bytes(state.params), _shard_bytes(state.opt_state)
    rest = compiled.argument_bytes - parameters - optimiser
    return {
        "parameters": Number(parameters, "counted"),
        "optimiser": Number(optimiser, "counted"),
        "batch and padding": Number(max(0.0, rest), "compiled"),
        "gradients, activations, temporaries": Number(compiled.live_bytes, "compiled"),
        "gaps between them": Number(compiled.temporary_bytes - compiled.live_bytes, "compiled"),
        "program": Number(compiled.other_bytes, "compiled"),
        "needed": Number(compiled.needed_bytes, "compiled"),
    }


def _shard_bytes(tree: object) -> float:
    """Returns the bytes of one device's parts."""
    leaves = jax.tree.leaves(tree)
    return float(
        sum(
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in leaves
        )
    )


def _counted_plan(config: RunConfig, stage: StageConfig, pod: Pod) -> StagePlan:
    """Returns the plan by arithmetic alone."""
    sizes = dict(zip(AXIS_NAMES, mesh_shape(config.mesh, pod.num_devices), strict=True))
    model = _model_on(config, stage, pod)
    params = abstract_params(model)
    selection = select_trained(config, stage)
    held = estimate_memory(model, stage, params, selection, sizes)
    counted = {name: Number(size, "counted") for name, size in held.items() if name != "all"}
    counted["needed"] = Number(held["all"], "counted")
    trained = jax.eval_shape(selection.split, params)
    plan = StagePlan(
        stage=stage,
        pod=pod,
        mesh=sizes,
        bytes_per_chip=counted,
        arithmetic_bytes=held["all"],
        model_flops=full_row_flops(model, stage),
        hardware_flops=Number(counted_hardware_flops(model, stage), "counted"),
        hbm_bytes=Number(counted_hbm_bytes(model, stage, sizes, flatten(params)), "counted"),
        collectives=counted_collectives(model, stage, sizes, pod, flatten(params), trained),
        minimum_bytes=minimum_exchange_bytes(stage, sizes, flatten(params), trained),
        activation_bytes=None,
        roofline=None,
        compile_secs=0.0,
    )
    return dataclasses.replace(plan, roofline=_times(plan))


def _times(plan: StagePlan) -> Roofline:
    stage = plan.stage
    return roofline(
        plan.pod.chip,
        plan.pod.num_devices,
        model_flops=plan.model_flops,
        hardware_flops=plan.hardware_flops.value,
        hbm_bytes=plan.hbm_bytes.value,
        interconnect_secs=sum(row.seconds for row in plan.collectives),
        num_tokens=stage.global_batch_size * stage.data.max_seq_len,
        total_steps=stage.total_steps,
    )
