"""An upright RGB image of any shape -> uint8 pixels of the tower's size.

Each of the two families of towers was trained behind one Hugging Face processor, whose rule for
images that are not square is kept here bit for bit. `anyres.py` says which views of a large image
there are; `images.py` opens the files.
"""

from typing import Literal

import numpy as np
from PIL import Image

from metamorph_jax.data.anyres import content_box
from metamorph_jax.typing import Integer

GREY = (127, 127, 127)  # pad_color of SigLIP's mean of 0.5
# An image resized by its short side becomes as long as it is thin; above this many pixels only the
# middle, which is all that is kept, is computed.
_MAX_RESIZED_PIXELS = 16_000_000

Processor = Literal["siglip", "clip"]
Kind = Literal["square", "pad"]
Pixels = Integer[np.ndarray, "size size 3"]
Views = Integer[np.ndarray, "num_views size size 3"]


def pad_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns the colour that normalises to about zero, for padding: `mean` (RGB, 0 to 1) * 255.

    **Source:** LLaVA's `expand2square`, which rounds down.
    """
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def fit_image(
    image: Image.Image,
    size: int,
    kind: Kind = "square",
    processor: Processor = "siglip",
    pad_color: tuple[int, int, int] = GREY,
) -> Pixels:
    """Returns an image at the tower's size.

    Args:
        image: RGB.
        size: side of the result, in pixels.
        kind: `square` leaves an image of another shape to the processor; `pad` first makes it
            square with borders of `pad_color` (Cambrian's `pad`, which resizes the square to the
            tower's size before its processor does, gives the same).
        processor: what the processor of the tower's family does with an image that is not square:
            `siglip` squashes it, `clip` cuts its middle out.
        pad_color: RGB colour of the borders.
    """
    if kind == "pad":
        image = pad_to_square(image, pad_color)
    return _process(image, size, processor)


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Returns an image in the middle of the smallest square that holds it.

    **Source:** LLaVA's `image_aspect_ratio=pad`; the smaller half of an odd border comes first.
    """
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def anyres_views(
    image: Image.Image, resolution: tuple[int, int], size: int, processor: Processor = "siglip"
) -> Views:
    """Returns the views of an image: all of it, squashed, then the tiles of a large copy.

    Args:
        image: RGB.
        resolution: (width, height) of the large copy, multiples of `size`; see
            `anyres.select_resolution`. Where its shape is not the image's, it has black borders.
        size: side of a view, in pixels.
        processor: of the tower's family; views are square, so that both do the same.

    **Source:** LLaVA-NeXT's `process_anyres_image`; tiles are in reading order.
    """
    width, height = resolution
    left, top, right, bottom = content_box(image.size, resolution)
    canvas = Image.new("RGB", resolution)
    if right > left and bottom > top:
        resized = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        canvas.paste(resized, (left, top))
    views = [image.resize((size, size), Image.Resampling.BICUBIC)]
    for y in range(0, height, size):
        views += [canvas.crop((x, y, x + size, y + size)) for x in range(0, width, size)]
    return np.stack([_process(view, size, processor) for view in views])


def _process(image: Image.Image, size: int, processor: Processor) -> Pixels:
    """Returns what the tower's Hugging Face processor feeds it, before normalisation.

    **Source:** HF transformers `SiglipImageProcessorPil` and `CLIPImageProcessorPil` (bicubic,
    antialiased when shrinking).
    """
    if processor == "siglip" or image.width == image.height:
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height <= _MAX_RESIZED_PIXELS:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(resized.crop((left, top, left + size, top + size)))
    # The same taps at positions that are rounded to float32.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
