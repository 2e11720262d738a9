"""What `prepare_stage` makes, for a tiny model and batches that need no files."""

import dataclasses
import math

import jax
import optax

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import MeshConfig, StageConfig
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import select
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.training.initial import create_params
from metamorph_jax.training.program import stage_optimizer
from metamorph_jax.training.state import create_state, state_layout
from metamorph_jax.training.step import make_train_step


@dataclasses.dataclass
class Setup:
    mesh: jax.sharding.Mesh
    layout: object
    step: object
    state: object

    def run(self, batches: list[dict]) -> list[dict]:
        """Trains on numpy batches; returns the metrics of each step as floats."""
        history = []
        with jax.set_mesh(self.mesh):
            for batch in batches:
                placed = jax.device_put(batch, batch_sharding(self.mesh))
                self.state, metrics = self.step(self.state, placed)
                history.append({name: float(value) for name, value in metrics.items()})
        return history


def make_setup(
    model: ModelConfig,
    stage: StageConfig,
    mesh: tuple[int, ...] = (1, 1, 1),
    token_rows: tuple[int, ...] = (),
    first: optax.GradientTransformation | None = None,
) -> Setup:
    """Returns a stage on a mesh (data, fsdp, tensor[, context]) of the first devices.

    `first` sees gradients before AdamW does.
    """
    sizes = dict(zip(("data", "fsdp", "tensor", "context"), mesh, strict=False))
    mesh = create_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(mesh)])
    selection = select(abstract_params(model), stage.trained, stage.excluded, token_rows)
    optimizer = stage_optimizer(stage, selection, abstract_params(model))
    if first is not None:
        optimizer = optax.chain(first, optimizer)
    layout = state_layout(model, selection, optimizer, mesh, frozen_dtype=stage.frozen_dtype)
    with jax.set_mesh(mesh):
        state = create_state(create_params(model, 0, mesh), selection, optimizer, layout)
        step = make_train_step(model, stage, selection, optimizer, layout, mesh)
    return Setup(mesh, layout, step, state)
