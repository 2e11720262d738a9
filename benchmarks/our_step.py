"""Our own training step on one device, as a run makes it, for benchmarks."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig, VisionConfig
from metamorph_jax.config.schema_run import MeshConfig, StageConfig
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import select
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.training.initial import create_params
from metamorph_jax.training.program import stage_optimizer
from metamorph_jax.training.state import TrainState, create_state, state_layout
from metamorph_jax.training.step import make_train_step
from metamorph_jax.typing import Batch, PyTree

# Where text alone is trained, a tower stands beside the decoder and no image goes through it.
NO_TOWER = VisionConfig(
    image_size=8, patch_size=4, num_layers=1, num_heads=1, embed_dim=8, mlp_dim=8
)


def text_model(llm: LlamaConfig, **fields) -> ModelConfig:
    """Returns a decoder alone as a model: a tower that nothing uses, and no vision head."""
    return ModelConfig(llm=llm, vision=NO_TOWER, vision_head="none", **fields)


def text_batch(tokens: np.ndarray, model: ModelConfig) -> Batch:
    """Returns rows of one text each, in which every token but the first is supervised."""
    none = np.full(tokens.shape, -1, np.int32)
    targets = np.roll(tokens, -1, axis=1).astype(np.int32)
    loss_mask = np.ones(tokens.shape, bool)
    loss_mask[:, -1], targets[:, -1] = False, 0
    features = (len(tokens), 0, model.visual_tokens.num_tokens, model.visual_dim)
    return {
        "tokens": tokens.astype(np.int32),
        "targets": targets,
        "loss_mask": loss_mask,
        "segment_ids": np.ones(tokens.shape, np.int32),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "visual_index": none,
        "visual_target": none,
        "features": np.zeros(features, np.float32),
    }


@dataclasses.dataclass
class OurStep:
    """The training of one stage on the first device.

    Args:
        model: to train.
        stage: its objective, trained part and optimiser.
        params: to begin with; None: random ones. They are given away.

    Attributes:
        state: after the steps so far.
        step: the jitted step.
    """

    model: ModelConfig
    stage: StageConfig
    params: dataclasses.InitVar[PyTree | None] = None
    state: TrainState = dataclasses.field(init=False)
    step: Callable = dataclasses.field(init=False)

    def __post_init__(self, params: PyTree | None):
        """Creates the state and the step."""
        mesh = create_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
        shapes = abstract_params(self.model)
        selection = select(shapes, self.stage.trained, self.stage.excluded, ())
        optimizer = stage_optimizer(self.stage, selection, shapes)
        frozen = self.stage.frozen_dtype
        layout = state_layout(self.model, selection, optimizer, mesh, frozen_dtype=frozen)
        self.mesh, self.layout = mesh, layout
        with jax.set_mesh(mesh):
            params = create_params(self.model, 0, mesh) if params is None else params
            self.state = create_state(params, selection, optimizer, layout)
            self.step = make_train_step(self.model, self.stage, selection, optimizer, layout, mesh)

    def __call__(self, batch: Batch) -> dict[str, float]:
        """Trains on a batch; returns the metrics when everything is done."""
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready((self.state, metrics))
        return {name: float(value) for name, value in metrics.items()}
