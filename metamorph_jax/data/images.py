"""An image file -> uint8 pixels of the tower's size, without trusting the file.

Paths may not leave the image folder, only plain files of five formats are opened, the header is
checked before anything is decoded, and truncated files are refused. Normalisation with mean and
standard deviation happens in the model, so that pixels travel as bytes.
"""

import collections
import os
import stat
import threading
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Integer

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
GREY = (127, 127, 127)  # pad_color of SigLIP's mean of 0.5
_CACHE_BYTES = 128 * 2**20

Pixels = Integer[np.ndarray, "size size 3"]


def pad_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns the colour that normalises to about zero, for padding: `mean` (RGB, 0 to 1) * 255.

    **Source:** LLaVA's `expand2square`, which rounds down.
    """
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


class ImageLoader:
    """Loads images of one folder at one size; recently used ones stay in memory.

    Attributes:
        root: folder that paths are relative to and may not leave.
        size: side of the square result, in pixels.
        geometry: `square` resizes to size x size ignoring the aspect ratio, `pad` first pads to a
            centred square.
        pad_color: RGB colour of the padding.
    """

    def __init__(
        self,
        root: str,
        size: int,
        geometry: Literal["square", "pad"] = "square",
        pad_color: tuple[int, int, int] = GREY,
    ):
        self.root, self.size = root, size
        self.geometry, self.pad_color = geometry, pad_color
        self._reset()

    def _reset(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._cache: collections.OrderedDict[str, Pixels] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes start with an empty cache.
        names = ("root", "size", "geometry", "pad_color")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def load(self, path: str, where: str) -> Pixels:
        """Returns the pixels of an image (read-only: they may be shared).

        Args:
            path: as written in the record.
            where: FILE:LINE of the record, for messages.

        Raises:
            UserError: the path leaves the folder, names no plain file, or the file is damaged, too
                large or of another format; names FILE:LINE and the path.
        """
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        pixels = fit(decode(self.resolve(path, where), path, where), self)
        pixels.flags.writeable = False
        with self._lock:
            self._cache[path] = pixels
            while len(self._cache) * pixels.nbytes > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return pixels

    def resolve(self, path: str, where: str) -> str:
        """Returns the real path of an image inside the folder.

        Raises:
            UserError: see `load`.
        """
        name = f"{where}: image {path!r}"
        if "\0" in path or "://" in path:
            raise UserError(f"{name} is no file name; images are local files, nothing is fetched")
        real = os.path.realpath(os.path.join(self._real_root, path))
        if os.path.commonpath([real, self._real_root]) != self._real_root:
            raise UserError(
                f"{name} lies outside its folder {self.root!r} (as written, or through a link); "
                "move the file into the folder or set the source's image_root to one that holds it"
            )
        try:
            mode = os.stat(real).st_mode
        except OSError as error:
            raise UserError(
                f"{name} cannot be read, {error.strerror} (looked in {self.root!r}); "
                "check the path and the source's image_root"
            ) from None
        if not stat.S_ISREG(mode):
            raise UserError(f"{name} is no plain file; remove the record or name an image file")
        return real


def decode(real_path: str, path: str, where: str) -> Image.Image:
    """Returns a file as an upright RGB image: first frame, transparency on white, 16 bits scaled.

    Args:
        real_path: the file to open.
        path: the name to complain about, as written in the record.
        where: FILE:LINE of the record.

    Raises:
        UserError: the file cannot be decoded, or has more than `MAX_PIXELS`.
    """
    name = f"{where}: image {path!r}"
    try:
        with Image.open(real_path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {width}x{height} pixels; at most {MAX_PIXELS:,} are decoded; "
                    "make it smaller"
                )
            return _to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # decoders raise almost any type on a damaged file
        raise UserError(
            f"{name} cannot be decoded, {error}; it must be a complete "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} file; replace it or remove the record"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it to 8 bits
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, loader: ImageLoader) -> Pixels:
    """Returns an image at the loader's size, resized as Hugging Face's SigLIP processor does.

    **Source:** HF transformers `SiglipImageProcessorPil` (bicubic, antialiased when shrinking); the
    padding is that of the reference's `image_aspect_ratio=pad`.
    """
    if loader.geometry == "pad" and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), loader.pad_color)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return np.array(image.resize((loader.size, loader.size), Image.Resampling.BICUBIC))
