"""Small videos for the tests: every frame tells its number."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIDE = 32


def frame_pixels(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Returns a frame whose left half tells number % 32, and the right half the rest."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = number % 32 * 8
    pixels[:, width // 2 :] = number // 32 * 8
    return pixels


def number_of(frame: Image.Image) -> int:
    """Returns the number that a decoded frame tells."""
    grey = np.asarray(frame, np.float64).mean((0, 2))
    quarter = len(grey) // 4
    return round(grey[quarter] / 8) + 32 * round(grey[-quarter] / 8)


def write_video(
    path: Path,
    count: int,
    fps: int = 10,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (SIDE, SIDE),
    key_every: int = 12,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video of `count` frames.

    Args:
        path: its suffix names the container.
        count: of frames; 0 writes the head alone.
        fps: frames per second.
        codec: FFmpeg's name.
        size: width and height.
        key_every: frames from one key frame to the next.
        times: of each frame, in units of 1 / fps; None: 0, 1, 2, ...
        options: of the container.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = key_every
        container.start_encoding()
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number, *size), "rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, count: int, name: str = "frame_{}.png") -> Path:
    """Writes a folder of frames, whose numbers have no leading zeros."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(frame_pixels(number)).save(folder / name.format(number))
    return folder
