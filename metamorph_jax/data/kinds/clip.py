"""A record's video as something that has a frame at every time: a file, a folder, or a list."""

import dataclasses

from metamorph_jax.data.kinds.material import Material
from metamorph_jax.data.media import ImageBytes, Media, VideoFrame

MIN_FPS, MAX_FPS = 1e-5, 1000.0  # from about a frame a day; far below, floats lose frames
MAX_FRAMES = 45  # of a sample; MetaMorph's
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".3gp")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video that is known to have frames.

    Attributes:
        video: path as written in the record, or the frames.
        duration_secs: positive.
        fps: frames per second; of a folder or list, the record's `fps`, or 1.
        num_frames: at least 1; of a file, about.
        is_folder: frame i of `video` is named by second i, whatever `fps` is.
    """

    video: str | tuple[str | ImageBytes, ...]
    duration_secs: float
    fps: float
    num_frames: int
    is_folder: bool

    @property
    def counts_frames(self) -> bool:
        """Whether frames are stored one by one, so that time goes in whole frames."""
        return self.is_folder or not isinstance(self.video, str)

    def frame(self, seconds: float) -> Media:
        """Returns what is shown at a time within the video."""
        # Microseconds: sums of tenths are no whole tenths.
        number = min(int(seconds * self.fps + 1e-6), self.num_frames - 1)
        if not isinstance(self.video, str):
            return self.video[number]
        return VideoFrame(self.video, float(number) if self.is_folder else round(seconds, 6))


def read_clip(material: Material) -> Clip:
    """Returns the video of a record; an only `image` that names a video file is one, too.

    Raises:
        BadSample: there is none, it cannot be read, or its frames per second are no such thing.
    """
    video = find_video(material)
    if isinstance(video, str):
        info = material.video_info(video)
        if not info.is_folder:
            return Clip(video, info.duration_secs, info.fps, info.num_frames, False)
        count = info.num_frames
    else:
        count = len(video)
        if not count:
            raise material.bad("malformed_record", "'video' is an empty list; expected frames")
    fps = material.record.extra.get("fps")
    fps = 1.0 if fps is None else fps  # tables write null where there is nothing
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if not number or not MIN_FPS <= fps <= MAX_FPS:  # false for NaN, too
        raise material.bad(
            "malformed_record",
            f"'fps' is {str(fps)[:20]!r}; expected frames per second, {MIN_FPS:g} to {MAX_FPS:g}",
        )
    return Clip(video, count / fps, float(fps), count, isinstance(video, str))


def find_video(material: Material) -> str | tuple[str | ImageBytes, ...]:
    """Returns the video of a record.

    Raises:
        BadSample: it has none.
    """
    record = material.record
    if record.video is not None:
        return record.video
    if names_video(record.images):
        return record.images[0]
    raise material.bad(
        "malformed_record",
        f"the record has no video, which {material.source.kind!r} is made of; name a video file "
        "or a folder of frames under 'video'",
    )


def names_video(images: tuple[str | ImageBytes, ...]) -> bool:
    """Whether a record's images are one video file, as MetaMorph's files write it."""
    return (
        len(images) == 1
        and isinstance(images[0], str)
        and images[0].lower().endswith(VIDEO_SUFFIXES)
    )
