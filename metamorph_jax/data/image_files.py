"""The bytes of an image, from a file that nobody vouches for, and the picture that they hold.

A path may not leave its folder, only regular files are read, and never for longer than a minute;
only five formats are opened, the header is checked before a pixel is decoded, and truncated data
is refused. Every failure is a `BadSample` of its reason. Nothing is fetched from anywhere.
`images.py` makes these pictures the input of a tower.
"""

import errno
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np
from PIL import Image

from metamorph_jax.data.faults import BadSample, Reason

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # JPEG's; Pillow's time to unpack a line grows with the square of its length
MAX_FILE_BYTES = 256 * 2**20  # MAX_PIXELS of four bytes, as in a BMP file
READ_TIMEOUT_SECS = 60.0  # after this, a file on a dead network drive counts as missing
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing about the file
_SHOWN_CHARACTERS = 500
_NO_FILE_NAME = re.compile(r"\0|://|^data:")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # width and height change places
_PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where Pillow looks
_T = TypeVar("_T")

# Pillow only warns of up to twice its own limit, which lies above ours.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def content_hash(data: bytes) -> str:
    """Returns the SHA-256 of a file's bytes, by which images are told apart."""
    return hashlib.sha256(data).hexdigest()


def shown(media: object) -> str:
    """Returns how a message calls a medium: paths are quoted; never longer than a few lines."""
    text = repr(media) if isinstance(media, str) else str(media)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def resolve(path: str, root: str, where: str, what: str = "image", folders: bool = False) -> str:
    """Returns the real path of a medium inside its folder.

    Args:
        path: as written in the record; absolute, or relative to `root`.
        root: real path of the folder that it may not leave, through a link either.
        where: FILE:LINE of the record, for messages.
        what: what to call it ("image", "video").
        folders: whether it may be a folder (of frames), too.

    Raises:
        BadSample: `forbidden_path` or `missing_media`.
    """
    name = f"{where}: {what} {shown(path)}"
    if _NO_FILE_NAME.search(path):
        message = f"{name} is no file name; {what}s are local files, nothing is fetched"
        raise BadSample("forbidden_path", message)
    try:
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([real, root]) != root:
            raise BadSample(
                "forbidden_path",
                f"{name} lies outside its folder {root!r} (as written, or through a link); "
                "move the file into the folder or set the source's image_root to one that holds it",
            )
        mode = os.stat(real).st_mode
    except OSError as error:
        _missing(name, error, root)
    except UnicodeError:  # half of a surrogate pair, which no file system can store
        raise BadSample("forbidden_path", f"{name} is no file name; it is no Unicode") from None
    if stat.S_ISREG(mode) or (folders and stat.S_ISDIR(mode)):
        return real
    kind = "plain file or folder" if folders else "plain file"
    raise BadSample("forbidden_path", f"{name} is no {kind}; name a file, or remove the record")


def _missing(name: str, error: OSError, root: str) -> NoReturn:
    if error.errno in _OUT_OF_RESOURCES:
        raise error
    raise BadSample(
        "missing_media",
        f"{name} cannot be read, {error.strerror} (looked in {root!r}); "
        "check the path, its permissions and the source's image_root",
    ) from None


def read_file(path: str, root: str, where: str) -> bytes:
    """Returns the bytes of an image file inside its folder.

    Args:
        path: as written in the record.
        root: real path of its folder.
        where: FILE:LINE of the record, for messages.

    Raises:
        BadSample: it lies outside, is missing, too large, changes while it is read, or takes longer
            than `READ_TIMEOUT_SECS`.
    """
    name = f"{where}: image {shown(path)}"
    limit = READ_TIMEOUT_SECS
    done, data = _within(limit, lambda: _read(resolve(path, root, where), name, root))
    if not done:
        raise BadSample(
            "missing_media",
            f"{name} was not read within {limit:g} s; check the drive that holds {root!r}",
        )
    return data


def _within(secs: float, function: Callable[[], bytes]) -> tuple[bool, bytes]:
    """Returns whether a function returned in time, and what; raises what it raises.

    A system call on a dead drive cannot be interrupted: its thread stays behind.
    """
    result: list[bytes] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=run, daemon=True, name="read image")
    thread.start()
    thread.join(secs)
    if error:
        raise error[0]
    return bool(result), result[0] if result else b""


def _read(real: str, name: str, root: str) -> bytes:
    """Returns a file's bytes; what was checked by name is checked again on what was opened."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait
    try:
        with open(os.open(real, flags), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                message = f"{name} is no plain file any more; it changed under us"
                raise BadSample("forbidden_path", message)
            if before.st_size > MAX_FILE_BYTES:
                raise BadSample(
                    "too_large_media",
                    f"{name} has {before.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read; "
                    "make it smaller or remove the record",
                )
            data = file.read(before.st_size + 1)  # one more, to notice that it grows
            after = os.fstat(file.fileno())
    except OSError as error:
        _missing(name, error, root)
    if (len(data), after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise BadSample(
            "unreadable_media",
            f"{name} changed while it was read; finish writing the data before training on it",
            content_hash(data),
        )
    return data


def decode(data: bytes, name: str) -> Image.Image:
    """Returns encoded bytes as an upright RGB image: the first frame, transparency on white.

    Embedded colour profiles are ignored, as the processors of Hugging Face do.

    Args:
        data: a whole file.
        name: what messages begin with: FILE:LINE and the image.

    Raises:
        BadSample: `unreadable_media`, or `too_large_media` if the header promises more than
            `MAX_PIXELS` or `MAX_SIDE`, or its texts would unpack to more than Pillow allows.
    """

    def picture(image: Image.Image) -> Image.Image:
        image.load()
        return to_rgb(_turn_upright(image))

    return _open(data, name, picture)


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """Returns (width, height) of what `decode` returns of the same bytes, and raises alike.

    Pixels are decoded only where an orientation may stand behind them, which is in some PNG files.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        may_turn = image.format != "PNG" or any(mark in data for mark in _PNG_ORIENTATIONS)
        return (height, width) if may_turn and _turn(image) in _LYING else (width, height)

    return _open(data, name, size)


def _open(data: bytes, name: str, use: Callable[[Image.Image], _T]) -> _T:
    """Returns what `use` makes of an image that is opened, but not decoded; see `decode`."""

    def bad(reason: Reason, text: str) -> BadSample:
        return BadSample(reason, f"{name} {text}", content_hash(data))

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise bad(
                    "too_large_media",
                    f"has {width}x{height} pixels; at most {MAX_PIXELS:,} are decoded; "
                    "make it smaller",
                )
            if max(width, height) > MAX_SIDE:
                raise bad(
                    "too_large_media",
                    f"has {width}x{height} pixels; at most {MAX_SIDE:,} a side are decoded; "
                    "make it smaller",
                )
            return use(image)
    except (BadSample, MemoryError):  # a machine without memory says nothing about the image
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise bad(
            "too_large_media",
            f"has more pixels than Pillow opens; at most {MAX_PIXELS:,} are decoded; "
            "make it smaller",
        ) from None
    except Exception as error:  # decoders raise almost any type on a damaged file
        if "MAX_TEXT_" in str(error):  # Pillow's name of its limit
            message = f"holds texts or a profile that are too large to unpack ({error})"
            raise bad("too_large_media", message + "; save it without them") from None
        detail = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # whose text is an address in memory
            detail = "no format recognises its beginning"
        raise bad(
            "unreadable_media",
            f"cannot be decoded, {detail}; it must be a complete "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} file; replace it or remove the record",
        ) from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what the camera's orientation tag asks for; a damaged tag says nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except MemoryError:
        raise
    except Exception:
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as RGB.

    Transparency is laid on white. Grey of 16 bits, which Pillow may keep in 32, is scaled to 8 and
    rounded to the nearest; floats are levels from 0 to 255.
    """
    mode = image.mode
    if mode.startswith("I"):  # convert() would clip it to 8 bits
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode == "F":
        values = np.nan_to_num(np.asarray(image)).clip(0, 255).round()
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        return _lab_to_rgb(image)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    return ImageCms.applyTransform(image, transform)
