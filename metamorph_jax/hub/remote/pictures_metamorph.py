"""Pictures of any kind -> RGB pixels of the tower's size, as they were made in training.

The image processor then has nothing to resize, which its backends do differently; it normalises.
"""

import os

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import load_image

_GREY = (127, 127, 127)  # SigLIP's mean


def flatten_pictures(images):
    """Returns a list of pictures, whatever lists they come in."""
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [picture for entry in images for picture in flatten_pictures(entry)]


def fit_picture(picture, size, geometry):
    """Returns a PIL image of `size`.

    Args:
        picture: a PIL image, uint8 array [height, width, 3], path or address.
        size: width and height, in pixels.
        geometry: `square` squashes a picture of another shape, `pad` first puts grey borders
            around it.

    Raises:
        ValueError: It is no picture.
    """
    image = _open(picture)
    if geometry == "pad" and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), _GREY)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image.resize(size, Image.Resampling.BICUBIC)


def _open(picture):
    """Returns an upright RGB image, transparency on white."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    elif isinstance(picture, str | os.PathLike):
        is_file = os.path.isfile(picture)
        picture = Image.open(picture) if is_file else load_image(str(picture))
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise ValueError(f"a picture is a {kind}; expected a PIL image, uint8 array or path")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would clip to 8
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return picture.convert("RGB")
