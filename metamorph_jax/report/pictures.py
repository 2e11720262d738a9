"""Pictures as data URIs for a page that needs no other file: one image per row of pictures.

Drawing of curves is in `plots.py`.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.typing import Shaped

Picture = Shaped[np.ndarray, "height width 3"]

_PAPER = 255
_WRONG = (214, 69, 65)  # frame of a picture that is not what was asked for
_FRAME, _GAP = 2, 4  # pixels


def data_uri(picture: Picture) -> str:
    """Returns uint8 pixels as a PNG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(picture, np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def row(pictures: Sequence[Picture | None], wrong: Sequence[bool] | None = None) -> Picture:
    """Returns pictures of one size side by side on white.

    Args:
        pictures: None leaves an empty, framed place (there was no picture).
        wrong: which ones get a red frame; all None pictures do.
    """
    wrong = [False] * len(pictures) if wrong is None else wrong
    shape = next((picture.shape for picture in pictures if picture is not None), (32, 32, 3))
    tiles = []
    for picture, is_wrong in zip(pictures, wrong, strict=True):
        height, width = shape[0] + 2 * _FRAME, shape[1] + 2 * _FRAME
        tile = np.full((height, width + _GAP, 3), _PAPER, np.uint8)
        if is_wrong or picture is None:
            tile[:, :width] = _WRONG
            tile[_FRAME:-_FRAME, _FRAME : width - _FRAME] = _PAPER
        if picture is not None:
            tile[_FRAME:-_FRAME, _FRAME : width - _FRAME] = picture
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)[:, :-_GAP]


def stack(rows: Sequence[Picture]) -> Picture:
    """Returns rows below each other; shorter ones end in white."""
    width = max(line.shape[1] for line in rows)
    rows = [
        np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=_PAPER)
        for line in rows
    ]
    spacer = np.full((_GAP, width, 3), _PAPER, np.uint8)
    parts = [part for line in rows for part in (line, spacer)]
    return np.concatenate(parts[:-1])


def thumbnail(path: Path, side: int = 192) -> str:
    """Returns a file's image as a URI, shrunk to at most `side` pixels; small ones stay exact."""
    with Image.open(path) as opened:
        return shrunk(opened.convert("RGB"), side)


def shrunk(picture: Image.Image, side: int = 192) -> str:
    """Returns an RGB image as a URI, shrunk to at most `side` pixels; small ones stay exact."""
    if max(picture.size) <= side:
        return data_uri(np.asarray(picture))
    picture = picture.copy()
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
