"""One update: gradients of the trained part, guarded against NaN, accumulated, sharded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.errors import UserError
from metamorph_jax.objectives.reduce import row_weights
from metamorph_jax.ops.backends import Choice, choose_backend
from metamorph_jax.optim.schedule import make_schedule
from metamorph_jax.optim.selection import Selection
from metamorph_jax.sharding.mesh import num_batch_shards
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.training.forward import PerRow, loss_weights, make_forward, row_counts
from metamorph_jax.training.state import StateLayout, TrainState
from metamorph_jax.typing import Array, PyTree

Metrics = dict[str, Array]


def make_train_step(
    model: ModelConfig,
    stage: StageConfig,
    selection: Selection,
    optimizer: optax.GradientTransformation,
    layout: StateLayout,
    mesh: Mesh,
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Returns the jitted (state, batch) -> (state, metrics); the state is donated.

    Metrics are float32 scalars: `loss`, `<name>_loss` means over the global batch, `cosine`,
    `grad_norm` (before clipping), `learning_rate`, counts of what was supervised, and the
    counters of skipped updates.
    """
    choice = attention_backend(model, stage, mesh)
    if choice is not None:
        model = dataclasses.replace(
            model, llm=dataclasses.replace(model.llm, attention=choice.name)
        )
    check_offload(model, mesh)
    gradients = make_gradients(model, stage, selection, num_batch_shards(mesh))
    schedule = make_schedule(stage.optimizer, stage.total_steps, stage.global_batch_size)

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        loss, means, grads = gradients(state.params, batch)
        grads = jax.lax.with_sharding_constraint(grads, layout.trained)
        grad_norm = optax.tree.norm(grads)
        trained = selection.split(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        # One flag for the whole update on every device: a NaN never enters half of the state.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trained = _choose(finite, optax.apply_updates(trained, updates), trained)
        skipped = 1 - finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=selection.merge(state.params, trained),
            opt_state=_choose(finite, opt_state, state.opt_state),
            skipped_steps=state.skipped_steps + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        )
        metrics = {"loss": loss, "grad_norm": grad_norm} | _named_losses(means)
        metrics["learning_rate"] = schedule(state.step - state.skipped_steps)
        metrics["skipped_steps"] = new_state.skipped_steps
        metrics["skipped_in_a_row"] = new_state.skipped_in_a_row
        return new_state, metrics

    rows = batch_sharding(mesh)
    return jax.jit(
        train_step,
        in_shardings=(layout.shardings, rows),
        out_shardings=(layout.shardings, None),
        donate_argnums=0,
    )


def attention_backend(model: ModelConfig, stage: StageConfig, mesh: Mesh) -> Choice | None:
    """Returns what computes the decoder's attention on this mesh; None: the stage has no decoder.

    It goes by the devices of the mesh, which need not be those that are here.

    Raises:
        UserError: the backend that the recipe names cannot compute the stage's rows there.
    """
    if stage.objective != "vpit":
        return None
    return choose_backend(
        model.llm.attention,
        mesh.devices.flat[0].platform,
        head_dim=model.llm.head_dim,
        length=stage.data.max_seq_len,
        num_context=mesh.shape["context"],
    )


def check_offload(model: ModelConfig, mesh: Mesh) -> None:
    """Raises a UserError if what enters a block is to wait in a memory that is not there."""
    device = mesh.devices.flat[0]
    if model.llm.remat != "offload" or device.platform != "cpu":
        return
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if "pinned_host" not in kinds:
        raise UserError(
            "config.model.llm.remat='offload' keeps activations in the memory 'pinned_host', but "
            f"the CPU devices of this jax have only {', '.join(kinds)}; use 'full'"
        )


def make_gradients(
    model: ModelConfig, stage: StageConfig, selection: Selection, num_shards: int = 1
) -> Callable[[PyTree, PyTree], tuple[Array, PerRow, dict[str, Array]]]:
    """Returns (params, batch) -> (loss, mean of each named sum, gradients of the trained part).

    Rows are weighted before anything is differentiated, so that accumulating over micro-batches
    gives the gradient of one large batch.
    """
    forward, factors = make_forward(model, stage), loss_weights(stage)

    def weighted_loss(trained, params, batch, weights):
        sums = forward(selection.merge(params, trained), batch)
        # A loss of weight 0 is only reported: it is not differentiated, and may not be finite.
        used = {name: factor for name, factor in factors.items() if factor}
        loss = sum(used[name] * jnp.vdot(weights[name], sums[name]) for name in used)
        return loss, {name: jnp.sum(value) for name, value in sums.items()}

    gradient = jax.value_and_grad(weighted_loss, has_aux=True)

    def gradients(params: PyTree, batch: PyTree):
        counts = row_counts(stage, batch)
        weights = {
            name: row_weights(
                count, stage.loss.mean_over, num_shards, num_steps=stage.grad_accum_steps
            )
            for name, count in counts.items()
        }
        trained = selection.split(params)
        (loss, sums), grads = _accumulate(
            lambda micro: gradient(trained, params, *micro),
            (batch, weights),
            stage.grad_accum_steps,
        )
        means = {name: sums[name] / jnp.maximum(jnp.sum(counts[name]), 1.0) for name in sums}
        return loss, means, grads

    return gradients


def _accumulate(function: Callable, arguments: PyTree, steps: int) -> PyTree:
    """Returns the sum of `function` over `steps` micro-batches, one at a time.

    Micro-batch i takes the rows i, i + steps, ...: each device keeps the rows it holds.
    """
    if steps == 1:
        return function(arguments)
    micro_batches = jax.tree.map(
        lambda leaf: rearrange(leaf, "(rows steps) ... -> steps rows ...", steps=steps), arguments
    )

    def add(total: PyTree, micro: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(micro)), None

    first = jax.tree.map(lambda leaf: leaf[0], micro_batches)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )
    return jax.lax.scan(add, zeros, micro_batches)[0]


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns `new` where the scalar `condition` holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _named_losses(means: PerRow) -> Metrics:
    """Returns the means as metrics: every one is a `_loss` but the cosine."""
    return {name if name == "cosine" else f"{name}_loss": mean for name, mean in means.items()}
