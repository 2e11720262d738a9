"""An upright RGB image of any shape -> uint8 pixels of the tower's size.

Each of the two families of towers was trained behind one Hugging Face processor, whose rule for
images that are not square is kept here bit for bit. `anyres.py` says which views of a large image
there are; `images.py` opens the files.
"""

import math
from typing import Literal

import numpy as np
from PIL import Image

from metamorph_jax.data.anyres import content_box
from metamorph_jax.typing import Integer

GREY = (127, 127, 127)  # pad_color of SigLIP's mean of 0.5
# An image resized by its short side becomes as long as it is thin; above this many pixels only the
# middle, which is all that is kept, is computed.
_MAX_RESIZED_PIXELS = 16_000_000

# The square that holds a longer image would take more than a quarter of a gigabyte.
_MAX_PADDED_SIDE = 8000
_BICUBIC_REACH = 3.0  # pixels that a tap may be away, one more than the filter's two

Processor = Literal["siglip", "clip"]
Pixels = Integer[np.ndarray, "size size 3"]


def pad_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns the colour that normalises to about zero, for padding: `mean` (RGB, 0 to 1) * 255.

    **Source:** LLaVA's `expand2square`, which rounds down.
    """
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def fit_image(
    image: Image.Image,
    size: int,
    kind: str = "square",
    processor: Processor = "siglip",
    pad_color: tuple[int, int, int] = GREY,
) -> Pixels:
    """Returns an image at the tower's size.

    Args:
        image: RGB.
        size: side of the result, in pixels.
        kind: `square` leaves an image of another shape to the processor; `pad` first makes it
            square with borders of `pad_color` (Cambrian's `pad`, which resizes the square to the
            tower's size before its processor does, gives the same); the `anyres` kinds squash it,
            whatever the processor: it is the small copy beside the tiles.
        processor: what the processor of the tower's family does with an image that is not square:
            `siglip` squashes it, `clip` cuts its middle out.
        pad_color: RGB colour of the borders.
    """
    if kind == "pad":
        image = pad_to_square(image, pad_color)
    elif kind.startswith("anyres"):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return _process(image, size, processor)


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Returns an image in the middle of the smallest square that holds it.

    An image longer than 8,000 pixels is shrunk to that before, and becomes a level or two off.

    **Source:** LLaVA's `image_aspect_ratio=pad`; the smaller half of an odd border comes first.
    """
    if image.width == image.height:
        return image
    side = max(image.size)
    if side > _MAX_PADDED_SIDE:
        shrunk = (max(round(old * _MAX_PADDED_SIDE / side), 1) for old in image.size)
        image, side = image.resize(tuple(shrunk), Image.Resampling.BICUBIC), _MAX_PADDED_SIDE
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def anyres_canvas(image: Image.Image, resolution: tuple[int, int]) -> Image.Image:
    """Returns the large copy of an image that is cut into tiles, black where its shape is another.

    Args:
        image: RGB.
        resolution: (width, height) of the copy, see `anyres.select_resolution`.

    **Source:** LLaVA-NeXT's `process_anyres_image`.
    """
    left, top, right, bottom = content_box(image.size, resolution)
    canvas = Image.new("RGB", resolution)
    if right > left and bottom > top:
        resized = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        canvas.paste(resized, (left, top))
    return canvas


def cut_tile(canvas: Image.Image, number: int, size: int) -> Pixels:
    """Returns a tile of a large copy, `size` pixels a side, by its number in reading order."""
    row, column = divmod(number, canvas.width // size)
    left, top = column * size, row * size
    return np.array(canvas.crop((left, top, left + size, top + size)))


def _process(image: Image.Image, size: int, processor: Processor) -> Pixels:
    """Returns what the tower's Hugging Face processor feeds it, before normalisation.

    **Source:** HF transformers `SiglipImageProcessorPil` and `CLIPImageProcessorPil` (bicubic,
    antialiased when shrinking).
    """
    if processor == "siglip" or image.width == image.height:
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    if width * height <= _MAX_RESIZED_PIXELS:
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(resized.crop((left, top, left + size, top + size)))
    return np.array(_middle(image, (width, height), size))


def _middle(image: Image.Image, scaled: tuple[int, int], size: int) -> Image.Image:
    """Returns the middle of an image resized to `scaled`, from no more of it than that takes.

    The taps are those of the whole, but at positions rounded to float32: a level or two off.
    """
    whole = image.size
    x_first, x_last, left, right = _reach(whole[0], scaled[0], size)
    y_first, y_last, top, bottom = _reach(whole[1], scaled[1], size)
    image = image.crop((x_first, y_first, x_last, y_last))

    def across(part: Image.Image) -> Image.Image:
        box = (left - x_first, 0, right - x_first, part.height)
        return part.resize((size, part.height), Image.Resampling.BICUBIC, box=box)

    def down(part: Image.Image) -> Image.Image:
        box = (0, top - y_first, part.width, bottom - y_first)
        return part.resize((part.width, size), Image.Resampling.BICUBIC, box=box)

    # Each pass rounds to whole levels. This is the order in which Pillow makes them for the whole.
    return across(down(image)) if whole[1] > whole[0] > size else down(across(image))


def _reach(whole: int, scaled: int, size: int) -> tuple[int, int, float, float]:
    """Returns (first, last, low, high) along an axis: the taps' pixels, and the middle's ends."""
    factor = whole / scaled
    start = (scaled - size) // 2
    low, high = start * factor, (start + size) * factor
    margin = math.ceil(_BICUBIC_REACH * max(factor, 1.0))
    first, last = math.floor(low) - margin, math.ceil(high) + margin
    return max(first, 0), min(last, whole), low, high
