"""From parameters and a batch to loss sums and counts per row, for each objective.

The only place where models and objectives meet. Means are taken in `step.py`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import LossConfig, StageConfig
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.objectives.sigmoid import reconstruction_loss, sigmoid_loss
from metamorph_jax.objectives.text import text_loss
from metamorph_jax.objectives.visual import visual_loss
from metamorph_jax.typing import Array, Batch, CaptionBatch, Float, PyTree

PerRow = dict[str, Float[Array, "B"]]


def make_forward(model: ModelConfig, stage: StageConfig) -> Callable[[PyTree, PyTree], PerRow]:
    """Returns (params, batch) -> {name: sum over each row} for the stage's objective."""
    module = MetaMorph(model)
    if stage.objective == "contrastive":
        return lambda params, batch: contrastive_sums(module, params, batch)
    return lambda params, batch: vpit_sums(module, stage.loss, params, batch)


def loss_weights(stage: StageConfig) -> dict[str, float]:
    """Returns the factor of each named mean in the total loss; names not here are only reported."""
    if stage.objective == "contrastive":
        return {"contrastive": 1.0, "reconstruction": stage.loss.reconstruction_weight}
    return {"text": 1.0, "visual": stage.loss.visual_weight}


def row_counts(stage: StageConfig, batch: PyTree) -> PerRow:
    """Returns what each sum of the forward pass is a sum over: supervised tokens, or images.

    The counts depend on the batch alone, so that means over micro-batches can be taken exactly.
    """
    if stage.objective == "contrastive":
        images = (batch["caption_ids"] >= 0).astype(jnp.float32)
        return {"contrastive": images, "reconstruction": images}
    text = jnp.sum(batch["loss_mask"], axis=-1, dtype=jnp.float32)
    visual = jnp.sum(batch["visual_target"] >= 0, axis=-1, dtype=jnp.float32)
    return {"text": text, "visual": visual, "cosine": visual}


def vpit_sums(module: MetaMorph, loss: LossConfig, params: PyTree, batch: Batch) -> PerRow:
    """Returns the text and the visual loss of VPiT, and the plain cosine; without a head, the text.

    The hidden state at position t predicts what stands at t + 1: a text token where
    `batch["loss_mask"]`, a visual token where `batch["visual_target"] >= 0`.
    Source: metamorph.md 1.7 and 1.8.
    """
    output = module.apply({"params": params}, batch)
    sums = {}
    if module.config.vision_head != "none":
        prediction = module.apply({"params": params}, output.hidden, method="predict_visual")
        visual = visual_loss(prediction, output.features, batch["visual_target"], loss.visual)
        sums = {"visual": visual.loss.sum, "cosine": visual.cosine.sum}
    text = text_loss(
        output.hidden,
        module.head_table(params),
        batch["targets"],
        batch["loss_mask"],
        vocab_size=module.config.llm.vocab_size,
        chunk_size=loss.vocab_chunk_size,
    )
    return {"text": text.sum} | sums


def contrastive_sums(module: MetaMorph, params: PyTree, batch: CaptionBatch) -> PerRow:
    """Returns SigLIP's pairwise sigmoid loss and the pixel reconstruction loss, per image.

    Rows without a caption (id -1) take no part.
    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1.
    """
    output = module.apply({"params": params}, batch, method="contrast")
    contrastive = sigmoid_loss(
        output.image_embedding,
        output.text_embedding,
        output.temperature,
        output.bias,
        batch["caption_ids"],
    )
    reconstruction = reconstruction_loss(output.reconstruction, batch["images"])
    return {
        "contrastive": contrastive.sum,
        "reconstruction": contrastive.count * reconstruction.sum,
    }
