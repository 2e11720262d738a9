"""An image or a video, looked at as closely as is asked for.

`decode` opens everything as training does, `headers` believes what a file says of itself, `none`
opens no image. Lengths of videos are always read, because the number of frames depends on them,
and so are sizes of images whose number of views does.
"""

import io
from typing import Any, Literal, NamedTuple

from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.image_files import FORMATS, MAX_PIXELS, decode, shown
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.lint.findings import short_hash
from metamorph_jax.data.media import ImageBytes, Media, media_key

Depth = Literal["decode", "headers", "none"]
_KEPT = 4096


class Looked(NamedTuple):
    """What is known of a readable image.

    Attributes:
        size: (width, height) in pixels; None: not looked at, or part of a whole.
        content: short hash of the file's bytes; 0: not read.
    """

    size: tuple[int, int] | None
    content: int


class MediaReader:
    """Looks at the media of the records of one folder.

    Args:
        loader: of the folder.
        depth: how closely.
    """

    def __init__(self, loader: ImageLoader, depth: Depth):
        self.loader, self.depth = loader, depth
        self._known: dict[str, Looked] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"loader": self.loader, "depth": self.depth, "_known": {}}

    def look(self, medias: tuple[Media, ...], where: str) -> list[Looked | BadSample]:
        """Returns what is known of each medium, or what is wrong with it.

        Args:
            medias: of one record.
            where: its FILE:LINE.
        """
        if self.depth == "none":
            return [Looked(None, 0)] * len(medias)
        parts = [media for media in medias if not isinstance(media, str | ImageBytes)]
        of_parts: Looked | BadSample = Looked(None, 0)
        if parts and self.depth == "decode":
            try:
                self.loader.load_all(parts, where)  # all at once: a video is opened once
            except BadSample as error:
                of_parts = error
        return [
            self._look(media, where) if isinstance(media, str | ImageBytes) else of_parts
            for media in medias
        ]

    def _look(self, media: str | ImageBytes, where: str) -> Looked | BadSample:
        key = media_key(media)
        if key not in self._known:
            try:
                looked = (_decode if self.depth == "decode" else _header)(media, self.loader, where)
            except BadSample as error:
                return error
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = looked
            return looked
        return self._known[key]


def _decode(media: str | ImageBytes, loader: ImageLoader, where: str) -> Looked:
    data = loader.read_bytes(media, where)
    image = decode(data, f"{where}: image {shown(media)}")
    return Looked(image.size, short_hash(data))


def _header(media: str | ImageBytes, loader: ImageLoader, where: str) -> Looked:
    """Returns an image's size, of a file that is no image only that it is none."""
    name = f"{where}: image {shown(media)}"
    if isinstance(media, ImageBytes):
        source, content = io.BytesIO(media.data), short_hash(media.data)
    else:
        source, content = loader.resolve(media, where), 0
    try:
        with Image.open(source, formats=FORMATS) as image:
            size = image.size
    except Exception as error:  # decoders raise almost any type on a damaged file
        message = f"{name} cannot be opened, {error}; replace it or remove the record"
        raise BadSample("unreadable_media", message) from None
    if size[0] * size[1] > MAX_PIXELS:
        message = f"{name} has {size[0]}x{size[1]} pixels; at most {MAX_PIXELS:,} are decoded"
        raise BadSample("too_large_media", message)
    return Looked(size, content)
