"""A video file, or a folder of frames, -> how long it is, and the frames shown at some times.

Nothing about the file is trusted: only plain files of a few containers are opened, as bytes, so
that no playlist can make the library open another file or the network; size, length and pixels are
checked before anything is decoded, and the clock is watched. `video_reader.py` finds frames inside
an open file; which times a sample asks for is decided in `kinds/`.
"""

import contextlib
import dataclasses
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.image_files import decode, read_file
from metamorph_jax.data.video_reader import FrameReader, measure

MAX_VIDEO_BYTES = 16 * 2**30
MAX_DURATION_SECS = 24 * 3600.0
MAX_FRAME_PIXELS = 16_000_000  # 4K has 9 million, 8K 33 million
MAX_FOLDER_FRAMES = 100_000
TIMEOUT_SECS = 60.0
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
# FFmpeg's names. No playlists, which name other files, and no MPEG program or transport streams,
# whose length is a guess.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
_EXPECTED = "expected a complete MP4, MOV, WebM, MKV, AVI or GIF file"
_MAX_FPS = 1000.0


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before anything is decoded.

    Attributes:
        duration_secs: from the first frame's beginning to the last one's end.
        fps: frames per second, on average; positive.
        num_frames: at least 1; exact if the file states it, duration times rate otherwise.
        is_folder: a folder of frames; its `fps` is 1, so that frame i is shown from second i on.
    """

    duration_secs: float
    fps: float
    num_frames: int
    is_folder: bool = False


def probe_video(real_path: str, where: str) -> VideoInfo:
    """Returns length and rate of a video file or a folder of frames, decoding no picture.

    Args:
        real_path: a resolved path that may be opened (see `ImageLoader.resolve`).
        where: FILE:LINE of the record, for messages.

    Raises:
        BadSample: there is no such file, it cannot be read, has no frames, or is too large.
    """
    if os.path.isdir(real_path):
        count = len(_frame_names(real_path, where))
        return VideoInfo(float(count), 1.0, count, is_folder=True)
    name = _name(real_path, where)
    with _open(real_path, name) as (container, stream, deadline):
        duration, fps, count = _stated(container, stream)
        if duration <= 0 or fps <= 0 or stream.duration is None:
            duration, fps, count = measure(container, stream, duration, fps, deadline)
        _check_complete(stream, real_path, name)
    if duration > MAX_DURATION_SECS:
        raise BadSample(
            "too_large_media",
            f"{name} lasts {duration:.0f} s; at most {MAX_DURATION_SECS:.0f} are read; cut it",
        )
    if fps <= 0:
        raise BadSample(
            "unreadable_media",
            f"{name} states neither its frame rate nor its length; {_EXPECTED}; encode it again",
        )
    return VideoInfo(duration or 1 / fps, fps, max(count or round(duration * fps), 1))


def read_frames(
    real_path: str,
    seconds: Sequence[float],
    where: str,
    fit: Callable[[Image.Image], Any] = lambda frame: frame,
) -> list[Any]:
    """Returns the upright RGB frames that are shown at the given times, in their order.

    Args:
        real_path: a resolved path that may be opened.
        seconds: from the video's beginning, in any order; a folder's frame i is shown at second i.
        where: FILE:LINE of the record, for messages.
        fit: applied to each frame as soon as it is decoded, so that only its results, such as
            smaller pixels, are kept.

    Raises:
        BadSample: the video cannot be read, ends before one of the times, has frames of too many
            pixels or takes too long.
    """
    if os.path.isdir(real_path):
        return [fit(frame) for frame in _read_folder(real_path, seconds, where)]
    name, found = _name(real_path, where), {}
    with _open(real_path, name) as (container, stream, deadline):
        reader = FrameReader(container, stream, name, deadline, MAX_FRAME_PIXELS)
        for second in sorted(set(seconds)):
            found[second] = fit(reader.frame_at(second))
    return [found[second] for second in seconds]


@contextlib.contextmanager
def _open(real_path: str, name: str) -> Iterator[tuple[Any, Any, float]]:
    """Yields (container, video stream, deadline); whatever goes wrong inside is a BadSample."""
    import av

    file = _open_plain_file(real_path, name)
    deadline = time.monotonic() + TIMEOUT_SECS
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        with (
            file,
            av.open(file, "r", options=options, timeout=TIMEOUT_SECS) as container,
        ):
            yield container, _pictures(container, name), deadline
    except (BadSample, MemoryError):  # a machine without memory says nothing about the video
        raise
    except (TimeoutError, av.error.ExitError):
        raise BadSample(
            "too_large_media",
            f"{name} took longer than {TIMEOUT_SECS:g} s to read; cut it, or encode it with key "
            "frames every few seconds",
        ) from None
    except Exception as error:  # demuxers and decoders raise almost any type on a damaged file
        problem = getattr(error, "strerror", None) or error or type(error).__name__
        raise BadSample(
            "unreadable_media", f"{name} cannot be decoded, {problem}; {_EXPECTED}; replace it"
        ) from None


def _open_plain_file(real_path: str, name: str) -> Any:
    if "://" in real_path or "\0" in real_path:
        raise BadSample(
            "forbidden_path", f"{name} is no file name; videos are local files, nothing is fetched"
        )
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait
    try:
        descriptor = os.open(real_path, flags)
    except OSError as error:
        raise BadSample(
            "missing_media", f"{name} cannot be read, {error.strerror}; check the path"
        ) from None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = BadSample("forbidden_path", f"{name} is no plain file; name a video file")
    elif status.st_size == 0:
        problem = BadSample("unreadable_media", f"{name} is an empty file; {_EXPECTED}; replace it")
    elif status.st_size > MAX_VIDEO_BYTES:
        problem = BadSample(
            "too_large_media",
            f"{name} has {status.st_size} bytes; at most {MAX_VIDEO_BYTES} are read; cut it",
        )
    if problem:
        file.close()
        raise problem
    return file


def _pictures(container: Any, name: str) -> Any:
    """Returns the first video stream that is no cover picture, its size checked."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise BadSample("unreadable_media", f"{name} holds no video; {_EXPECTED} with pictures")
    codec = streams[0].codec_context
    if codec.width * codec.height > MAX_FRAME_PIXELS:
        raise BadSample(
            "too_large_media",
            f"{name} has frames of {codec.width}x{codec.height} pixels; at most "
            f"{MAX_FRAME_PIXELS:,} are decoded; make it smaller",
        )
    # The decoder itself refuses larger frames further on. One thread: loaders run in parallel.
    codec.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    codec.thread_count = 1
    return streams[0]


def _stated(container: Any, stream: Any) -> tuple[float, float, int]:
    """Returns duration in seconds, frames per second and their number; 0 where not stated."""
    if stream.duration is not None:
        duration = float(stream.duration * stream.time_base)
    else:
        duration = (container.duration or 0) / 1_000_000
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if stream.frames and duration > 0:
        fps = stream.frames / duration  # of a variable rate, the mean is what counts
    return duration, min(fps, _MAX_FPS), stream.frames


def _check_complete(stream: Any, real_path: str, name: str) -> None:
    """Compares the index at the head of MP4 and AVI files with what is there."""
    entries = stream.index_entries
    end = entries[-1].pos + entries[-1].size if len(entries) else 0
    size = os.path.getsize(real_path)
    if end > size:
        raise BadSample(
            "unreadable_media",
            f"{name} is cut off: its index names {end} bytes, but it has {size}; replace it",
        )


def _frame_names(real_path: str, where: str) -> list[str]:
    """Returns the names of a folder's frames; numbers in names are sorted as numbers."""
    name = f"{where}: folder of frames {real_path!r}"
    try:
        with os.scandir(real_path) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(FRAME_SUFFIXES) and not entry.name.startswith(".")
            ]
    except OSError as error:
        raise BadSample(
            "missing_media",
            f"{name} cannot be read, {error.strerror}; check the path and its permissions",
        ) from None
    if not names:
        raise BadSample(
            "unreadable_media",
            f"{name} holds no frame; expected files ending in {', '.join(FRAME_SUFFIXES)}",
        )
    if len(names) > MAX_FOLDER_FRAMES:
        raise BadSample(
            "too_large_media",
            f"{name} holds {len(names)} frames; at most {MAX_FOLDER_FRAMES} are read",
        )
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)] + [
        (0, name)
    ]


def _read_folder(real_path: str, seconds: Sequence[float], where: str) -> Iterator[Image.Image]:
    names = _frame_names(real_path, where)
    for second in seconds:
        number = int(second + 1e-6)
        if not 0 <= number < len(names):
            raise BadSample(
                "unreadable_media",
                f"{where}: folder of frames {real_path!r} holds {len(names)} frames, but frame "
                f"{number} is asked for; restore the missing files",
            )
        data = read_file(names[number], os.path.realpath(real_path), where)
        yield decode(data, f"{where}: frame {names[number]!r} of {real_path!r}")


def _name(real_path: str, where: str) -> str:
    return f"{where}: video {real_path!r}"
