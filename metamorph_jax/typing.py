"""The one alphabet of array dimensions, and the batch that travels from data to the train step.

Every public function that takes arrays is annotated with these letters, and einsum strings use the
same ones:

    B batch (rows)        T sequence (queries)     S keys                 D model width
    F mlp width           N query heads            K key/value heads      G = N / K
    H head dim            V vocabulary             L layers               I images per row
    P visual tokens per image                      E vision width
    M tokens, of all rows or all images            C entries in a block of the vocabulary

Pixels are spelled out: "B I height width 3". This module imports no array library, so that data
workers can use it.
"""

from typing import Any, NotRequired, TypedDict

from jaxtyping import Bool, Float, Int, Integer, Shaped

Array = Any  # numpy on the host, jax.Array inside jit: annotations name the shape, not the library
PyTree = Any

TEXT, NEWLINE = -1, -2  # in `Batch.visual_index`, beside the numbers of visual tokens

__all__ = ["Array", "Batch", "Bool", "CaptionBatch", "Float", "Int", "Integer", "PyTree", "Shaped"]


class Batch(TypedDict):
    """Packed rows for VPiT. All shapes are the same at every step.

    A position holds either a text token or a visual token; `targets` are already shifted, so that
    the hidden state at position t predicts `targets[t]` (where `loss_mask`) or the visual token
    `visual_target[t]` of the same row (where it is >= 0), never both.

    Attributes:
        tokens: text token ids; 0 at visual positions and padding.
        targets: id that the hidden state here must predict; 0 where `loss_mask` is False.
        loss_mask: True where the text loss is taken.
        segment_ids: 1, 2, ... per packed example; 0 is padding.
        positions: restart at 0 in every segment.
        visual_index: the row's visual token (image * P + token) that sits here, -1: none, -2: the
            learned newline. An image that is shown as several views is as many images.
        visual_target: which of them the hidden state here must predict, -1: none.
        images: uint8 pixels; unused slots are zero.
        visual_sources: only of `anyres_max` images; the four visual tokens that the one here is
            mixed of, -1: none.
        visual_weights: with `visual_sources`; how much of each.
        features: instead of `images`, what the frozen encoder made of them: float32, or bfloat16
            if the model computes in that; unused slots are zero.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    loss_mask: Bool[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    visual_index: Int[Array, "B T"]
    visual_target: Int[Array, "B T"]
    visual_sources: NotRequired[Int[Array, "B T 4"]]
    visual_weights: NotRequired[Float[Array, "B T 4"]]
    images: NotRequired[Shaped[Array, "B I height width 3"]]
    features: NotRequired[Float[Array, "B I P E"]]


class CaptionBatch(TypedDict):
    """Images with captions, for contrastive pretraining of the encoder.

    Attributes:
        images: uint8 pixels.
        tokens: caption token ids, padded with 0.
        token_mask: True on caption tokens.
        caption_ids: equal numbers mean equal captions (these pairs count as positives, too).
    """

    images: Shaped[Array, "B height width 3"]
    tokens: Int[Array, "B T"]
    token_mask: Bool[Array, "B T"]
    caption_ids: Int[Array, "B"]
