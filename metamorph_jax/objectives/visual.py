"""Predicted against true visual tokens.

The cosine is minus the cosine itself, not 1 - cosine, so a perfect prediction gives -1.
**Source:** MetaMorph (arXiv 2412.14164), section 3, and `model/language_model/metamorph_llama.py`
for the variants.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from metamorph_jax.objectives.reduce import RowSums, masked_row_sums
from metamorph_jax.ops.gather import gather_tokens
from metamorph_jax.ops.normalize import l2_normalize
from metamorph_jax.typing import Array, Float, Int

_COSINE_FLOOR = 1e-8  # of each norm, as in torch's cosine_similarity
_LOG_FLOOR = 1e-10  # added to probabilities, as in the reference


class VisualLoss(NamedTuple):
    """The loss to be minimised, and the plain cosine to be looked at whatever the loss is.

    Attributes:
        loss: of the chosen kind.
        cosine: between prediction and target.
    """

    loss: RowSums
    cosine: RowSums


def cosine_similarity(
    a: Float[Array, "*batch E"], b: Float[Array, "*batch E"]
) -> Float[Array, "*batch"]:
    """Returns the cosine of the angle between vectors, in float32."""
    a, b = (l2_normalize(x.astype(jnp.float32), _COSINE_FLOOR) for x in (a, b))
    return jnp.sum(a * b, axis=-1)


def _cosine(prediction, target):
    return -cosine_similarity(prediction, target)


def _l1(prediction, target):
    return jnp.mean(jnp.abs(prediction - target), axis=-1)


def _softmax(prediction, target):
    return -jnp.sum(target * jnp.log(prediction + _LOG_FLOOR), axis=-1)


_KINDS = {"cosine": _cosine, "l1": _l1, "softmax": _softmax}


def visual_loss_per_token(
    prediction: Float[Array, "*batch E"], target: Float[Array, "*batch E"], kind: str
) -> Float[Array, "*batch"]:
    """Returns the loss of each prediction.

    Args:
        prediction: from `MetaMorph.predict_visual`, already normalised or softmaxed.
        target: in the same space.
        kind: `cosine`; `l1`, the mean absolute difference over channels; `softmax`, the
            cross-entropy between two distributions over channels.
    """
    return _KINDS[kind](prediction.astype(jnp.float32), target.astype(jnp.float32))


def visual_loss(
    prediction: Float[Array, "B T E"],
    features: Float[Array, "B I P E"],
    visual_target: Int[Array, "B T"],
    kind: str,
) -> VisualLoss:
    """Returns summed loss, summed cosine, and the number of supervised visual tokens, per row.

    Args:
        prediction: at every position, from `MetaMorph.predict_visual`.
        features: of the row's images; constant here, whether or not the tower is trained.
        visual_target: as in `Batch`; -1: nothing to predict.
        kind: see `visual_loss_per_token`.
    """
    table = einops.rearrange(jax.lax.stop_gradient(features), "B I P E -> B (I P) E")
    target = gather_tokens(table, visual_target)
    mask = (visual_target >= 0).astype(jnp.float32)
    loss = visual_loss_per_token(prediction, target, kind)
    cosine = jax.lax.stop_gradient(cosine_similarity(prediction, target))
    return VisualLoss(masked_row_sums(loss, mask), masked_row_sums(cosine, mask))
