"""A conversation as tokens: what templates render and rows are packed from."""

import dataclasses
from typing import NamedTuple

import numpy as np

from metamorph_jax.data.media import Media
from metamorph_jax.typing import TEXT, Bool, Float, Int


class Mixture(NamedTuple):
    """Visual tokens that are mixed of others, as those of a resized map.

    Attributes:
        sources: the four visual tokens that each position is mixed of, -1: none.
        weights: how much of each.
    """

    sources: Int[np.ndarray, "T 4"]
    weights: Float[np.ndarray, "T 4"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens.

    Attributes:
        tokens: text ids; 0 where a visual token sits.
        supervised: True where the text loss learns to produce this token (from the one before).
        visual_index: which of the example's visual tokens sits here (image * P + token), -1: text,
            -2: the newline of an image of several views. Of a mixture, the largest part.
        image_index: to which image the position belongs, of several views to the first; -1: text.
        images: in order of appearance; an image that is shown as several views is as many.
        image_is_answer: per image, whether its visual tokens are to be predicted.
        where: FILE:LINE of its record.
        announced: an image-start token stands in front of each image.
        mixture: None: every visual token is one of its image's.
    """

    tokens: Int[np.ndarray, "T"]
    supervised: Bool[np.ndarray, "T"]
    visual_index: Int[np.ndarray, "T"]
    image_index: Int[np.ndarray, "T"]
    images: tuple[Media, ...]
    image_is_answer: tuple[bool, ...]
    where: str
    announced: bool = True
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def visual_is_answer(self) -> Bool[np.ndarray, "T"]:
        """True where a visual token sits that is to be predicted."""
        is_answer = np.array([*self.image_is_answer, False], np.bool_)  # the last one: text
        return is_answer[self.image_index]

    @property
    def sources(self) -> Mixture:
        """What every position is mixed of; of a whole visual token, of itself."""
        if self.mixture is not None:
            return self.mixture
        index = np.maximum(self.visual_index, TEXT)
        alone = np.array([1, 0, 0, 0], np.float32)
        return Mixture(np.repeat(index[:, None], 4, axis=1), (index >= 0)[:, None] * alone)
