"""Image files made by hand: valid ones, headers that lie, and what loading them says."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader

WHERE = "data.jsonl:7"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def load(root: Path, name: str, size: int = 8, **options):
    """Returns the pixels of an image below `root`."""
    return ImageLoader(str(root), size, **options).load(name, WHERE)


def refusal(root: Path, name: str) -> BadSample:
    """Returns why an image is refused; its message names the record and what to do."""
    with pytest.raises(BadSample) as caught:
        load(root, name)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: image ")
    assert len(message) < 2000
    assert " at 0x" not in message  # the same from every process
    return caught.value


def encoded(format_: str, size=(40, 40), seed: int = 0, **options) -> bytes:
    """Returns a small image of noise as a file."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Returns a chunk of a PNG file."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """Returns an 8-bit grey PNG; without `pixels`, its data says nothing of what it promises."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = zlib.compress(pixels if pixels is not None else b"\0" * 100)
    return PNG_SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND")


def gif(width: int, height: int, frames: int = 1, frame_size=(1, 1)) -> bytes:
    """Returns a GIF whose frames are all the same single pixel, whatever size they promise."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, *frame_size, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame * frames + b";"


def bmp(width: int, height: int) -> bytes:
    """Returns the headers of a 24-bit BMP and nothing else."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def jpeg_of_size(width: int, height: int) -> bytes:
    """Returns a small JPEG whose frame header promises another size."""
    data = bytearray(encoded("JPEG", (16, 16)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    """Returns a small animation whose canvas promises another size."""
    data = bytearray(webp_frames(2))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def webp_frames(count: int) -> bytes:
    """Returns an animation of `count` frames, all but the first the same."""
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    file = io.BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:])
    data = file.getvalue()
    last = data[data.rindex(b"ANMF") :]
    data += last * (count - 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
