"""A conversation as tokens: what templates render and rows are packed from."""

import dataclasses

import numpy as np

from metamorph_jax.data.media import Media
from metamorph_jax.typing import Bool, Int


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens.

    Attributes:
        tokens: text ids; 0 where a visual token sits.
        supervised: True where the text loss learns to produce this token (from the one before).
        visual_index: which of the example's visual tokens sits here (image * P + token), -1: text.
        images: in order of appearance.
        image_is_answer: per image, whether its visual tokens are to be predicted.
        where: FILE:LINE of its record.
        announced: an image-start token stands in front of each image.
    """

    tokens: Int[np.ndarray, "T"]
    supervised: Bool[np.ndarray, "T"]
    visual_index: Int[np.ndarray, "T"]
    images: tuple[Media, ...]
    image_is_answer: tuple[bool, ...]
    where: str
    announced: bool = True

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def visual_is_answer(self) -> Bool[np.ndarray, "T"]:
        """True where a visual token sits that is to be predicted."""
        is_visual = self.visual_index >= 0
        found = np.zeros(len(self), np.bool_)
        per_image = int(is_visual.sum()) // max(len(self.images), 1)
        found[is_visual] = np.repeat(np.array(self.image_is_answer, np.bool_), per_image)
        return found
