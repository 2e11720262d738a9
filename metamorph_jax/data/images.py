"""A medium of a record -> uint8 pixels of the tower's size.

Files, bytes in the row, frames of videos, crops, images with boxes drawn on them, and tiles
(`media.py`) all come out alike. `image_files.py` opens what holds them, `geometry.py` makes them
the tower's size. Normalisation with mean and standard deviation happens in the model, so that
pixels travel as bytes.
"""

import collections
import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from metamorph_jax.data import image_files
from metamorph_jax.data.boxes import clipped, crop, draw_boxes
from metamorph_jax.data.geometry import (
    GREY,
    Pixels,
    Processor,
    anyres_canvas,
    cut_tile,
    fit_image,
    pad_color,
)
from metamorph_jax.data.media import (
    Boxed,
    Crop,
    ImageBytes,
    Media,
    Tile,
    VideoFrame,
    media_key,
    whole,
)

__all__ = ["GREY", "ImageLoader", "Pixels", "pad_color"]
_CACHE_BYTES = 128 * 2**20
_Key = tuple[type, str]


class ImageLoader:
    """Loads images of one folder at one size; recently used ones stay in memory.

    Attributes:
        root: folder that paths are relative to and may not leave.
        size: side of the square result, in pixels.
        geometry: `square`, `pad` or `anyres...`, see `geometry.fit_image`.
        pad_color: RGB colour of the padding.
        processor: family of the tower, which decides what `square` does; see `geometry.fit_image`.
    """

    def __init__(
        self,
        root: str,
        size: int,
        geometry: str = "square",
        pad_color: tuple[int, int, int] = GREY,
        processor: Processor = "siglip",
    ):
        self.root, self.size = root, size
        self.geometry, self.pad_color, self.processor = geometry, pad_color, processor
        self._reset()

    def _reset(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._cache: collections.OrderedDict[_Key, Pixels] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes start with an empty cache.
        names = ("root", "size", "geometry", "pad_color", "processor")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def load(self, media: Media, where: str) -> Pixels:
        """Returns the pixels of one medium; see `load_all`."""
        return self.load_all([media], where)[0]

    def load_all(self, medias: Sequence[Media], where: str) -> list[Pixels]:
        """Returns the pixels of the media of a record (read-only: they may be shared).

        What several of them are parts of, a video or an image, is opened once.

        Args:
            medias: in any order.
            where: FILE:LINE of the record, for messages.

        Raises:
            BadSample: the first that cannot be loaded, with the reason; names FILE:LINE and it.
        """
        keys = [_key(media) for media in medias]
        with self._lock:
            found = {key: self._cache[key] for key in keys if key in self._cache}
            for key in found:
                self._cache.move_to_end(key)
        missing = {key: media for key, media in zip(keys, medias, strict=True) if key not in found}
        groups: dict[_Key, dict[_Key, Media]] = {}
        for key, media in missing.items():
            groups.setdefault(_key(whole(media)), {})[key] = media
        for group in groups.values():
            for key, pixels in zip(group, self._open(list(group.values()), where), strict=True):
                found[key] = self._keep(key, pixels)
        return [found[key] for key in keys]

    def _keep(self, key: _Key, pixels: Pixels) -> Pixels:
        pixels.flags.writeable = False
        with self._lock:
            self._cache[key] = pixels
            while len(self._cache) * pixels.nbytes > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return pixels

    def _open(self, group: Sequence[Media], where: str) -> list[Pixels]:
        """Returns the pixels of media that are all parts of one video or one image."""
        first = group[0]
        if isinstance(first, VideoFrame):
            from metamorph_jax.data.video import read_frames

            real = self.resolve_video(first.video, where)
            return read_frames(real, [frame.seconds for frame in group], where, self.fit)
        base = whole(first)
        name = f"{where}: image {image_files.shown(base)}"
        image = image_files.decode(self.read_bytes(base, where), name)
        return self.fit_all(group, image, name)

    def fit_all(self, medias: Sequence[Media], image: Image.Image, name: str) -> list[Pixels]:
        """Returns the pixels of media that are all of one image, which is open.

        Args:
            medias: the image itself, parts of it, tiles of it or of its parts.
            image: RGB.
            name: what messages begin with: FILE:LINE and the image.

        Raises:
            BadSample: a part lies outside the image.
        """

        @functools.lru_cache(maxsize=1)  # the tiles of a copy follow one another
        def canvas(media: Media, resolution: tuple[int, int]) -> Image.Image:
            return anyres_canvas(_part(media, image, name), resolution)

        def pixels(media: Media) -> Pixels:
            if isinstance(media, Tile):
                return cut_tile(canvas(media.image, media.resolution), media.number, self.size)
            return self.fit(_part(media, image, name))

        return [pixels(media) for media in medias]

    def image_size(self, media: Media, where: str) -> tuple[int, int]:
        """Returns (width, height) of an upright image, or of a part of one, in its own pixels.

        Args:
            media: no frame of a video, and no tile.
            where: FILE:LINE of the record, for messages.

        Raises:
            BadSample: it cannot be opened; names FILE:LINE and it.
        """
        base = whole(media)
        name = f"{where}: image {image_files.shown(base)}"
        size = image_files.upright_size(self.read_bytes(base, where), name)
        if not isinstance(media, Crop):
            return size
        left, top, right, bottom = clipped(size, media.box, name)
        return right - left, bottom - top

    def read_bytes(self, media: str | ImageBytes, where: str) -> bytes:
        """Returns the encoded image as it is stored, for hashing.

        Args:
            media: a file, or bytes in the row.
            where: FILE:LINE of the record, for messages.

        Raises:
            BadSample: see `image_files.read_file`; the bytes are not looked into.
        """
        if isinstance(media, ImageBytes):
            return media.data
        return image_files.read_file(media, self._real_root, where)

    def resolve_video(self, path: str, where: str) -> str:
        """Returns the real path of a video, or of a folder of frames, inside the folder.

        Raises:
            BadSample: see `image_files.resolve`.
        """
        return image_files.resolve(path, self._real_root, where, "video", folders=True)

    def resolve(self, path: str, where: str) -> str:
        """Returns the real path of an image inside the folder.

        Raises:
            BadSample: see `image_files.resolve`.
        """
        return image_files.resolve(path, self._real_root, where)

    def fit(self, image: Image.Image) -> Pixels:
        """Returns an RGB image of any shape at the loader's size."""
        return fit_image(image, self.size, self.geometry, self.processor, self.pad_color)


def _key(media: Media) -> _Key:
    # With the type: a path may be spelled like the key of another kind of medium.
    return type(media), media_key(media)


def _part(media: Media, image: Image.Image, name: str) -> Image.Image:
    if isinstance(media, Crop):
        return crop(image, media.box, name)
    return draw_boxes(image, media.boxes, name) if isinstance(media, Boxed) else image
