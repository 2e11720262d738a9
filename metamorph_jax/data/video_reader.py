"""Inside an open video: which frame is shown at a time, found with few decodes.

`video.py` opens the file and turns exceptions into complaints about the record.
"""

import time
from typing import Any

from PIL import Image

from metamorph_jax.data.faults import BadSample

# Containers round times, WebM to milliseconds; a frame that begins this much late is shown.
_EPSILON_SECS = 1e-4
# Streams often end a little before their stated length.
_MISSING_END_SECS = 0.5


def measure(
    container: Any, stream: Any, duration: float, fps: float, deadline: float
) -> tuple[float, float, int]:
    """Returns duration, rate and number of frames from packets, where the head does not say.

    If it states the length of the whole file, which sound may decide, only the last key frame and
    what follows is read; otherwise everything. No picture is decoded.

    Args:
        container: an open one.
        stream: its video stream.
        duration: stated length of the file in seconds, or 0.
        fps: stated frames per second, or 0.
        deadline: `time.monotonic()` after which TimeoutError is raised.

    Returns:
        Seconds, frames per second and frames; 0 frames if they were not counted.
    """
    whole = duration <= 0 or fps <= 0
    if not whole:
        container.seek(int(duration / stream.time_base), stream=stream)
    count, end = _count_packets(container, stream, deadline)
    if not count and not whole:  # the end has sound only
        container.seek(0)
        whole = True
        count, end = _count_packets(container, stream, deadline)
    if not count:
        raise ValueError("it has no frames")
    if not whole:
        return end, fps, 0
    return end, fps or (count / end if end > 0 else 0.0), count


def _count_packets(container: Any, stream: Any, deadline: float) -> tuple[int, float]:
    """Returns the number of packets from here on, and when the last one's picture ends."""
    count, end = 0, 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if count % 256 == 0 and time.monotonic() > deadline:
            raise TimeoutError
        count += 1
        begin = packet.pts if packet.pts is not None else packet.dts or 0
        end = max(end, begin + (packet.duration or 0))
    return count, float((end - (stream.start_time or 0)) * stream.time_base)


class FrameReader:
    """Frames of one video, asked for in order of time.

    Between two times it either decodes on or jumps to the key frame before the later one. A jump
    that lands where decoding had already been was a loss; from then on gaps must be longer than
    that one was. So no index is needed, and never more than about twice the decodes of the better
    way.

    Args:
        container: an open one.
        stream: its video stream.
        name: of the video, for messages.
        deadline: `time.monotonic()` after which TimeoutError is raised.
        max_pixels: of a frame.
    """

    def __init__(self, container: Any, stream: Any, name: str, deadline: float, max_pixels: int):
        self._container, self._stream, self._name = container, stream, name
        self._deadline, self._max_pixels = deadline, max_pixels
        self._period = 1 / float(stream.average_rate or stream.guessed_rate or 1)
        self._min_jump_secs = 0.0
        self._decoder = container.decode(stream)
        self._shown = self._next = None
        self._shown_secs = self._next_secs = 0.0

    def frame_at(self, seconds: float) -> Image.Image:
        """Returns the frame shown at a time, which is not before the last one asked for.

        Raises:
            BadSample: the video ends before, or the frame is damaged or too large.
            TimeoutError: the deadline has passed.
        """
        if self._shown is None:
            self._seek(0.0)
        at_end = self._next is None
        if not at_end and self._next_secs <= seconds - self._min_jump_secs:
            self._jump(seconds)
        while self._next is not None and self._next_secs <= seconds + _EPSILON_SECS:
            self._advance()
        self._check(seconds)
        return self._image()

    def _advance(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        if self._next is not None:
            self._shown, self._shown_secs = self._next, self._next_secs
        self._next = next(self._decoder, None)
        if self._next is not None:
            self._next_secs = self._seconds(self._next)

    def _seconds(self, frame: Any) -> float:
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            return self._shown_secs + self._period
        return float((stamp - (self._stream.start_time or 0)) * self._stream.time_base)

    def _jump(self, seconds: float) -> None:
        known = self._next_secs
        self._seek(seconds)
        if self._shown is None or self._shown_secs > seconds + _EPSILON_SECS:
            self._seek(0.0)  # it cannot be found that way in this file
            self._min_jump_secs = float("inf")
        elif self._shown_secs <= known:
            self._min_jump_secs = max(self._min_jump_secs, seconds - self._shown_secs)

    def _seek(self, seconds: float) -> None:
        stamp = int(seconds / self._stream.time_base) + (self._stream.start_time or 0)
        self._container.seek(stamp, stream=self._stream, backward=True)
        self._decoder = self._container.decode(self._stream)
        self._shown = self._next = None
        self._shown_secs = self._next_secs = 0.0
        self._advance()
        self._advance()

    def _check(self, seconds: float) -> None:
        if self._shown is None:
            raise ValueError("it has no frames")
        length = float((self._shown.duration or 0) * self._stream.time_base)
        end = self._shown_secs + max(length, self._period) + _MISSING_END_SECS
        if self._next is None and seconds > end:
            raise BadSample(
                "unreadable_media",
                f"{self._name} ends at {self._shown_secs:.2f} s, but its head promises a frame at "
                f"{seconds:.2f} s; the file is cut off or damaged; replace it",
            )
        if self._shown.is_corrupt:
            raise BadSample(
                "unreadable_media",
                f"{self._name} is damaged at {self._shown_secs:.2f} s; replace the file",
            )
        if self._shown.width * self._shown.height > self._max_pixels:
            raise BadSample(
                "too_large_media",
                f"{self._name} has a frame of {self._shown.width}x{self._shown.height} pixels at "
                f"{self._shown_secs:.2f} s; at most {self._max_pixels:,} are decoded",
            )

    def _image(self) -> Image.Image:
        image = self._shown.to_image()
        # `rotation` is counter-clockwise, as `rotate` turns; 90 degrees swap the sides.
        return image.rotate(self._shown.rotation, expand=True) if self._shown.rotation else image
