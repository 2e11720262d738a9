"""How an image of any resolution becomes several views, and their patches one sequence of tokens.

Integers only: which resolution, where the picture sits on it, which patches of which view follow
one another and where a line ends. `geometry.py` cuts the pixels, `views.py` writes the plan into
examples, and the model gathers by it.

**Source** of every rule: LLaVA-NeXT (`process_anyres_image`, `unpad_image`, `prepare_inputs_labels
_for_multimodal`). Hugging Face's `llava_next` differs: it rounds to seven decimals where the
original truncates a product that may be one rounding error below a whole number (see
tests/parity/test_anyres.py), and it keeps no newline-free merge and no cap.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from metamorph_jax.config.schema_data import parse_grids
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Bool, Float, Int

Size = tuple[int, int]  # (width, height)
Merge = Literal["spatial_unpad", "spatial", "flat"]
_SHRINK_ABOVE = 1.1  # a map that is longer than its cap by less than this factor is left alone


def parse_pinpoints(spec: str | Sequence[Sequence[int]], tile: int) -> tuple[Size, ...]:
    """Returns the resolutions to choose from, as (width, height) in pixels.

    Args:
        spec: a list of [width, height], or grids of tiles as a recipe writes them.
        tile: side of a view, in pixels.

    Raises:
        UserError: the text names no grids, or a resolution is no multiple of the tile.
    """
    if isinstance(spec, str):
        found = [(columns * tile, rows * tile) for columns, rows in parse_grids(spec)]
    else:
        found = [(int(width), int(height)) for width, height in spec]
    bad = [size for size in found if min(size) < tile or size[0] % tile or size[1] % tile]
    if bad or not found:
        what = f"{list(bad[0])} is no multiple" if bad else "there is none"
        raise UserError(
            f"pinpoints: {what}; expected sides that are multiples of the tower's {tile} pixels"
        )
    return tuple(found)


def select_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """Returns the resolution that keeps most pixels of an image, and among those wastes fewest.

    Args:
        size: (width, height) of the image.
        pinpoints: to choose from; the first of equals wins.
    """
    width, height = size

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(pinpoints, key=merit)


def content_box(size: Size, resolution: Size) -> tuple[int, int, int, int]:
    """Returns where an image sits on a canvas: (left, top, right, bottom), one side filled."""
    (width, height), (canvas_width, canvas_height) = size, resolution
    across, down = canvas_width / width, canvas_height / height
    if across < down:
        new_width, new_height = canvas_width, min(math.ceil(height * across), canvas_height)
    else:
        new_width, new_height = min(math.ceil(width * down), canvas_width), canvas_height
    left, top = (canvas_width - new_width) // 2, (canvas_height - new_height) // 2
    return left, top, left + new_width, top + new_height


@dataclasses.dataclass(frozen=True)
class AnyresPlan:
    """How the patches of an image's views become its tokens.

    Patches are numbered through all views: view * P + patch, view 0 being the whole image.

    Attributes:
        resolution: (width, height) of the canvas that is cut into tiles; (0, 0): there is none.
        grid: (columns, rows) of tiles.
        num_views: 1 + columns * rows.
        base: patches that come first.
        map: patches of the tiles that follow, row by row.
        map_hw: (height, width) of that map as the tokens have it.
        resized: whether the map is shrunk to `map_hw` (bilinear, without antialiasing).
        line_breaks: whether the newline vector ends each row of the map.
        end_break: whether one newline ends the whole.
    """

    resolution: Size
    grid: Size
    num_views: int
    base: Int[np.ndarray, "n"]
    map: Int[np.ndarray, "height width"]
    map_hw: tuple[int, int]
    resized: bool
    line_breaks: bool
    end_break: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the image, newlines included."""
        height, width = self.map_hw
        return len(self.base) + height * (width + self.line_breaks) + self.end_break

    @property
    def is_newline(self) -> Bool[np.ndarray, "n"]:
        """True where the newline vector sits, of the image's tokens."""
        height, width = self.map_hw
        lines = np.zeros((height, width + self.line_breaks), np.bool_)
        if self.line_breaks:
            lines[:, -1] = True
        base, end = np.zeros(len(self.base), np.bool_), np.ones(int(self.end_break), np.bool_)
        return np.concatenate([base, lines.ravel(), end])

    @functools.cached_property
    def mixture(self) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
        """The four patches that each token is mixed of, and their weights.

        Where the map is not resized, the first is all of it. -1 and 0: newline.
        """
        sources, weights = (part.reshape(-1, 4) for part in bilinear(self.map.shape, self.map_hw))
        alone = np.broadcast_to(np.eye(4)[0], (len(self.base), 4))
        patches = np.repeat(self.base[:, None], 4, axis=1)
        found = np.full((self.num_tokens, 4), -1, np.int64), np.zeros((self.num_tokens, 4))
        found[0][~self.is_newline] = np.concatenate([patches, self.map.ravel()[sources]])
        found[1][~self.is_newline] = np.concatenate([alone, weights])
        return found

    @property
    def index(self) -> Int[np.ndarray, "n"]:
        """The patch that each token is or, on a resized map, mostly is; -1: newline."""
        sources, weights = self.mixture
        nearest = np.argmax(weights, axis=1)[:, None]
        return np.take_along_axis(sources, nearest, axis=1)[:, 0]


def anyres_plan(
    size: Size,
    pinpoints: Sequence[Size],
    tile: int,
    side: int,
    *,
    max_tiles: int | None = None,
    merge: Merge = "spatial_unpad",
    with_base: bool = True,
) -> AnyresPlan:
    """Returns the plan of an image.

    Args:
        size: (width, height) of the image.
        pinpoints: see `parse_pinpoints`.
        tile: side of a view, in pixels.
        side: patches along a side of a view; P = side * side.
        max_tiles: K of `anyres_max_K`: a map of more tokens than K views have is shrunk.
        merge: `spatial_unpad` crops the borders off the map and ends each row with a newline;
            `spatial` does neither; `flat` puts view after view.
        with_base: False leaves out the tokens of the whole image.
    """
    resolution = select_resolution(size, pinpoints)
    columns, rows = resolution[0] // tile, resolution[1] // tile
    patches = np.arange(side * side * (1 + columns * rows))
    base, tiles = np.split(patches, [side * side])
    if merge != "flat":
        tiles = tiles.reshape(rows, columns, side, side).swapaxes(1, 2)
    tiles = tiles.reshape(rows * side, columns * side)
    unpad = merge == "spatial_unpad"
    if unpad:
        tiles = _unpad(tiles, size)
    map_hw = (tiles.shape[0], tiles.shape[1])
    if unpad and max_tiles is not None:
        map_hw = _capped(map_hw, max_tiles * side * side)
    return AnyresPlan(
        resolution=resolution,
        grid=(columns, rows),
        num_views=1 + columns * rows,
        base=base if with_base else base[:0],
        map=tiles,
        map_hw=map_hw,
        resized=map_hw != tiles.shape,
        line_breaks=unpad,
    )


def single_view_plan(side: int, merge: Merge = "flat") -> AnyresPlan:
    """Returns the plan of an image that is one view; `spatial_unpad` ends it with a newline."""
    return AnyresPlan(
        resolution=(0, 0),
        grid=(0, 0),
        num_views=1,
        base=np.arange(side * side),
        map=np.zeros((0, 0), np.int64),
        map_hw=(0, 0),
        resized=False,
        line_breaks=False,
        end_break=merge == "spatial_unpad",
    )


def _unpad(tiles: Int[np.ndarray, "height width"], size: Size) -> Int[np.ndarray, "rows columns"]:
    """Returns a map without the rows or columns that hold nothing of the image."""
    (width, height), (map_height, map_width) = size, tiles.shape
    if width / height > map_width / map_height:
        border = (map_height - int(height * (map_width / width))) // 2
        return tiles[border : map_height - border]
    border = (map_width - int(width * (map_height / height))) // 2
    return tiles[:, border : map_width - border]


def _capped(map_hw: tuple[int, int], max_tokens: int) -> tuple[int, int]:
    height, width = map_hw
    factor = math.sqrt(height * width / max_tokens)
    if factor <= _SHRINK_ABOVE:
        return map_hw
    return int(height // factor), int(width // factor)


def merge_views(
    features: Float[np.ndarray, "views P E"],
    newline: Float[np.ndarray, "1 E"],
    plan: AnyresPlan,
) -> Float[np.ndarray, "n E"]:
    """Returns the tokens of an image: what the model computes, in numpy.

    Args:
        features: of the patches of every view.
        newline: the learned vector that ends a row.
        plan: of the image.
    """
    patches = features.reshape(-1, features.shape[-1])
    tokens = _mix(patches, *plan.mixture)
    tokens[plan.is_newline] = newline
    return tokens


def resize_map(
    features: Float[np.ndarray, "h w E"], height: int, width: int
) -> Float[np.ndarray, "height width E"]:
    """Returns a feature map at another size, see `bilinear`."""
    patches = features.reshape(-1, features.shape[-1])
    return _mix(patches, *bilinear(features.shape[:2], (height, width)))


def bilinear(
    old_hw: tuple[int, int], new_hw: tuple[int, int]
) -> tuple[Int[np.ndarray, "height width 4"], Float[np.ndarray, "height width 4"]]:
    """Returns of which four entries of a map each entry of a resized one is mixed, and how.

    The entries are numbered row by row. At the same size, the first is all of it.

    **Source:** torch `F.interpolate(mode="bilinear", align_corners=False)`: no antialiasing.
    """
    (above, below, down), (left, right, across) = map(_neighbours, old_hw, new_hw)
    rows, columns = np.stack([above, below], axis=1), np.stack([left, right], axis=1)
    sources = rows[:, None, :, None] * old_hw[1] + columns[None, :, None, :]
    row_weights, column_weights = (np.stack([1 - w, w], axis=1) for w in (down, across))
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    return sources.reshape(*new_hw, 4), weights.reshape(*new_hw, 4)


def _neighbours(
    old: int, new: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Returns the entries around each of `new` places along an axis, and the second's weight."""
    positions = np.maximum((np.arange(new) + 0.5) * (old / max(new, 1)) - 0.5, 0.0)
    before = np.floor(positions).astype(np.int64)
    return before, np.minimum(before + 1, old - 1), positions - before


def _mix(
    patches: Float[np.ndarray, "M E"],
    sources: Int[np.ndarray, "*n 4"],
    weights: Float[np.ndarray, "*n 4"],
) -> Float[np.ndarray, "*n E"]:
    return np.einsum("...ke,...k->...e", patches[sources], weights.astype(patches.dtype))
