"""Parts of images: a region cut out, or regions drawn on the whole with their names.

What "visual thinking" looks at: see docs/formats.md. Boxes are those of the image as it is seen,
after the camera's rotation is undone.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import NamedBox

LINE_WIDTH = 5  # pixels; the width and the colour of MetaMorph's VStar samples
COLOR = (255, 0, 0)
_MIN_FONT_PIXELS = 12
_FONT_FRACTION = 1 / 24  # of the image's short side
_MAX_NAME_CHARACTERS = 80

Box = tuple[float, float, float, float]


def crop(image: Image.Image, box: Box, name: str) -> Image.Image:
    """Returns the region of an image; what overhangs its border is left out.

    Args:
        image: RGB.
        box: (left, top, right, bottom) in pixels, rounded to whole ones.
        name: what messages begin with: FILE:LINE and the image.

    Raises:
        BadSample: the box is empty or outside the image (`malformed_record`).
    """
    return image.crop(clipped(image.size, box, name))


def draw_boxes(image: Image.Image, boxes: Sequence[NamedBox], name: str) -> Image.Image:
    """Returns a copy of an image with red rectangles and their names.

    A name is one line above its rectangle, or in it where there is no room above.

    Raises:
        BadSample: see `crop`.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    pixels = max(_MIN_FONT_PIXELS, round(min(image.size) * _FONT_FRACTION))
    font = ImageFont.load_default(pixels)
    for named in boxes:
        left, top, right, bottom = clipped(image.size, named.box, name)
        # The last pixel of a rectangle belongs to it.
        draw.rectangle((left, top, right - 1, bottom - 1), outline=COLOR, width=LINE_WIDTH)
        text = " ".join(named.name.split())[:_MAX_NAME_CHARACTERS]
        height = pixels + LINE_WIDTH
        at = (left, top - height) if top >= height else (left + LINE_WIDTH, top + LINE_WIDTH)
        draw.text(at, text, fill=COLOR, font=font)
    return image


def clipped(size: tuple[int, int], box: Box, name: str) -> tuple[int, int, int, int]:
    """Returns the whole pixels of a box that lie in an image of (width, height), see `crop`."""
    width, height = size
    if all(map(math.isfinite, box)):
        left, top, right, bottom = map(round, box)
        inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if inside[0] < inside[2] and inside[1] < inside[3]:
            return inside
    raise BadSample(
        "malformed_record",
        f"{name}: the box {list(box)} holds no pixel of its {width}x{height}; expected "
        "[left, top, right, bottom] with left < right and top < bottom, inside the image",
    )
