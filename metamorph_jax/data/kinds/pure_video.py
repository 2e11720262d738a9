"""Samples of a video without words: predict, complete, reverse, sort its frames, or time them.

Every frame that a request promises is in the answer: frames are counted before words are chosen.
"""

import dataclasses
import math

from metamorph_jax.data.conversation import Conversation, Image, Text
from metamorph_jax.data.kinds.clip import MAX_FRAMES, Clip, read_clip
from metamorph_jax.data.kinds.material import Material
from metamorph_jax.data.kinds.wordings import (
    TWO_FRAMES,
    TWO_FRAMES_ANSWER,
    VIDEO_ANSWERS,
    VIDEO_REQUESTS,
)

MIN_STEP_SECS, MAX_STEP_SECS = 0.1, 10.0
# Images that the smallest sample of a task shows and asks for.
_FEWEST_IMAGES = {
    "following": 2,
    "continuation": 2,
    "reverse": 2,
    "missing": 3,
    "order": 4,
    "interval": 2,
    "next": 3,
}
_MAX_NEXT = 3
# Below this rate, frames are stored one by one or rare, and each may be used.
_SPARSE_FPS = 4.0


@dataclasses.dataclass(frozen=True)
class _Task:
    """Numbers of the frames that are shown and, in the order wanted, asked for."""

    name: str
    shown: list[int]
    asked: list[int]


def pure_video(material: Material) -> Conversation:
    """Returns one of the tasks on evenly spaced frames of a video.

    Two frames: predict the second. More: a span of them, and one of seven tasks, all alike often:
    `following` (first -> the rest), `continuation` (first ones -> the rest), `reverse` (last -> the
    earlier ones, backwards), `missing` (every second -> the others), `order` (shuffled -> sorted),
    `interval` (-> the time between them, in words), `next` (-> one to three that follow the span).

    **Source:** MetaMorph's video tasks. Different: an answer to `order` does not repeat the
    shuffled order, `next` promises only frames that there are.

    Raises:
        BadSample: there is no video, it has a single frame, or a row holds fewer than two images.
    """
    clip = read_clip(material)
    room = material.max_images
    if room is not None and room < 2:
        raise material.bad(
            "over_long", f"a row holds {room} images, a video sample at least 2; raise max_images"
        )
    step = _draw_step(material, clip)
    count = min(MAX_FRAMES, int((clip.duration_secs - 1e-6) / step) + 1)
    if count < 2 or clip.num_frames < 2:
        raise material.bad(
            "nothing_to_learn",
            f"the video has too few frames ({clip.num_frames} in {clip.duration_secs:.2f} s) to "
            "predict one from another; use a longer one",
        )
    frames = [Image(clip.frame(index * step)) for index in range(count)]
    apart = _in_words(step)
    if count == 2:
        request = material.draw.choice("wording", TWO_FRAMES).format(apart=apart)
        return material.dialogue(
            [frames[0], Text(f"\n{request}")], [Text(TWO_FRAMES_ANSWER), frames[1]]
        )
    task = _draw_task(material, count, 2 * MAX_FRAMES if room is None else room)
    words = {"apart": apart, "shown": _frames(task.shown), "asked": _frames(task.asked)}
    request = material.draw.choice("wording", VIDEO_REQUESTS[task.name]).format(**words)
    answer = VIDEO_ANSWERS[task.name].format(**words)
    return material.dialogue(
        [*(frames[index] for index in task.shown), Text(f"\n{request}")],
        [Text(answer), *(frames[index] for index in task.asked)],
    )


def _draw_step(material: Material, clip: Clip) -> float:
    """Returns the seconds between frames, in tenths or, of sparse frames, in whole frames.

    **Source:** MetaMorph: uniform from max(2 / fps, 0.1) to min(10, half the length). Different:
    sparse frames may be neighbours, so that a folder of three frames makes a sample.
    """
    sparse = clip.counts_frames or clip.fps <= _SPARSE_FPS
    low = max((1 if sparse else 2) / clip.fps, MIN_STEP_SECS)
    high = max(min(MAX_STEP_SECS, clip.duration_secs / 2), low)
    drawn = material.draw.uniform("step", low, high)
    unit = 1 / clip.fps if sparse else 0.1
    return max(round(drawn / unit), math.ceil(low / unit - 1e-6)) * unit


def _draw_task(material: Material, count: int, room: int) -> _Task:
    """Returns a task on a span of `count` frames that shows and asks for at most `room` images."""
    draw = material.draw
    name = draw.choice("task", [name for name, few in _FEWEST_IMAGES.items() if few <= room])
    reserved = 1 if name == "next" else 0  # at least one frame has to follow the span
    longest = min(count, room) - reserved
    if name == "order":
        longest = min(count, room // 2)
    length = draw.integer("length", 3 if name == "missing" else 2, longest)
    start = draw.integer("start", 0, count - reserved - length)
    span = list(range(start, start + length))
    if name == "following":
        return _Task(name, span[:1], span[1:])
    if name == "continuation":
        cut = draw.integer("cut", 1, length - 1)
        return _Task(name, span[:cut], span[cut:])
    if name == "reverse":
        return _Task(name, span[-1:], span[-2::-1])
    if name == "missing":
        return _Task(name, span[::2], span[1::2])
    if name == "order":
        return _Task(name, [span[index] for index in draw.order("order", length)], span)
    if name == "interval":
        return _Task(name, span, [])
    asked = min(draw.integer("next", 1, _MAX_NEXT), count - span[-1] - 1, room - length)
    return _Task(name, span, [span[-1] + 1 + index for index in range(asked)])


def _in_words(seconds: float) -> str:
    number = f"{seconds:.2f}".rstrip("0").rstrip(".")
    return f"{number} second" if number == "1" else f"{number} seconds"


def _frames(numbers: list[int]) -> str:
    return f"{len(numbers)} frame" if len(numbers) == 1 else f"{len(numbers)} frames"
