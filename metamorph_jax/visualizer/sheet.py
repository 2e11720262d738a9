"""Many small pictures as one, for people to look at."""

import math

import numpy as np

from metamorph_jax.typing import Shaped

_GAP = 2  # pixels between pictures
_BACKGROUND = 64  # grey that neither dark nor light pictures melt into
_MIN_SIDE = 64  # smaller pictures are enlarged, pixel by pixel, or nobody sees anything


def contact_sheet(
    pictures: Shaped[np.ndarray, "count height width 3"], num_columns: int = 10
) -> Shaped[np.ndarray, "sheet_height sheet_width 3"]:
    """Returns the uint8 pictures in reading order, `num_columns` in a row."""
    scale = math.ceil(_MIN_SIDE / min(pictures.shape[1:3]))
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = large.shape
    num_columns = min(num_columns, count)
    num_rows = math.ceil(count / num_columns)
    shape = (num_rows * (height + _GAP) + _GAP, num_columns * (width + _GAP) + _GAP, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for index, picture in enumerate(large):
        row, column = divmod(index, num_columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
