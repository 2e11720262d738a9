"""What an image is: a file, bytes in the row, a frame of a video, or a part or a tile of these.

Names only; nothing is opened here. `images.py` turns them into pixels. All are hashable, and two
that are equal have the same pixels.
"""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class ImageBytes:
    """An encoded image (PNG, JPEG, ...) that stands in the row itself.

    Attributes:
        data: the file's bytes.
        name: where in the row, for messages ("image[0]").
    """

    data: bytes = dataclasses.field(repr=False)
    name: str = dataclasses.field(default="image", compare=False)

    def __str__(self) -> str:
        return f"{self.name} ({len(self.data)} bytes in the row)"


@dataclasses.dataclass(frozen=True)
class VideoFrame:
    """The frame that is shown at a time of a video file, or one file of a folder of frames.

    Attributes:
        video: path as written in the record.
        seconds: from the beginning.
    """

    video: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.video} at {self.seconds:g} s"


@dataclasses.dataclass(frozen=True)
class Crop:
    """A region of an image.

    Attributes:
        image: the whole.
        box: (left, top, right, bottom) in its pixels.
    """

    image: "str | ImageBytes"
    box: tuple[float, float, float, float]

    def __str__(self) -> str:
        return f"{self.image} cropped to {self.box}"


@dataclasses.dataclass(frozen=True)
class NamedBox:
    """A region with a name.

    Attributes:
        box: (left, top, right, bottom) in pixels.
        name: written beside it; may be empty.
    """

    box: tuple[float, float, float, float]
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Boxed:
    """An image with boxes and their names drawn on it."""

    image: "str | ImageBytes"
    boxes: tuple[NamedBox, ...]

    def __str__(self) -> str:
        return f"{self.image} with {len(self.boxes)} boxes drawn"


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of a large copy of an image, a view beside the image itself; no record names one.

    Attributes:
        image: of which it is a tile.
        resolution: (width, height) of the copy, in pixels.
        number: of the tile, in reading order.
    """

    image: "str | ImageBytes | Crop | Boxed"
    resolution: tuple[int, int]
    number: int

    def __str__(self) -> str:
        width, height = self.resolution
        return f"tile {self.number} of {self.image} at {width}x{height}"


# A plain string is a path, as written in the record.
Media = str | ImageBytes | VideoFrame | Crop | Boxed | Tile


def media_key(media: Media) -> str:
    """Returns a name for the pixels, equal exactly for equal media; bytes by their hash."""
    if isinstance(media, ImageBytes):
        return "sha256:" + hashlib.sha256(media.data).hexdigest()
    if isinstance(media, VideoFrame):
        return f"{media.video}@{media.seconds!r}"
    if isinstance(media, Crop):
        return f"{media_key(media.image)}#crop{media.box!r}"
    if isinstance(media, Boxed):
        return f"{media_key(media.image)}#boxes{media.boxes!r}"
    if isinstance(media, Tile):
        return f"{media_key(media.image)}#tile{media.number} of {media.resolution!r}"
    return media


def whole(media: Media) -> str | ImageBytes | VideoFrame:
    """Returns what has to be opened for a medium: its image, or for all frames of a video, one."""
    if isinstance(media, Crop | Boxed | Tile):
        return whole(media.image)
    return VideoFrame(media.video, 0.0) if isinstance(media, VideoFrame) else media
