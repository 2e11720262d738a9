"""A scene -> pixels -> PNG, by Pillow. Edges are hard: every pixel has the colour of one thing."""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw

from metamorph_jax.data.shapes.scene import BACKGROUND, COLORS, IMAGE_SIZE, SIZES, Scene
from metamorph_jax.typing import Bool, Shaped


@functools.lru_cache(maxsize=256)
def shape_mask(shape: str, side: int) -> Bool[np.ndarray, "side side"]:
    """Returns which pixels of its square a shape covers (read-only: it is shared)."""
    image = Image.new("1", (side, side))
    draw, last = ImageDraw.Draw(image), side - 1
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=1)
    elif shape == "square":
        draw.rectangle((0, 0, last, last), fill=1)
    elif shape == "triangle":
        draw.polygon([(0, last), (last, last), (last / 2, 0)], fill=1)
    elif shape == "cross":
        arm = side // 3 + (side - side // 3) % 2  # so that it lies in the middle
        start = (side - arm) // 2
        draw.rectangle((start, 0, start + arm - 1, last), fill=1)
        draw.rectangle((0, start, last, start + arm - 1), fill=1)
    else:
        raise ValueError(f"no shape {shape!r}")
    mask = np.array(image)
    mask.flags.writeable = False
    return mask


def draw_pixels(scene: Scene) -> Shaped[np.ndarray, "size size 3"]:
    """Returns the uint8 picture of a scene."""
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
    for item in scene.items:
        mask = Image.fromarray(shape_mask(item.shape, SIZES[item.size]))
        left, top, _, _ = item.box
        picture.paste(COLORS[item.color], (left, top), mask)
    return np.array(picture)


def png_bytes(picture: Shaped[np.ndarray, "height width 3"]) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def scene_png(scene: Scene) -> bytes:
    """Returns the picture of a scene as the bytes of a PNG file."""
    return png_bytes(draw_pixels(scene))
