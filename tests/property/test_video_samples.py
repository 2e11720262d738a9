"""Every frame that a sample of a real video names can be read, and is the right one."""

import pytest

from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import VideoFrame
from metamorph_jax.data.video import probe_video, read_frames
from tests.kind_samples import make, media, turns
from tests.video_files import SIDE, number_of, write_frames, write_video

FILES = {
    "long.mp4": (130, 10, "libx264"),
    "fast.mkv": (100, 50, "libx264"),
    "short.webm": (7, 30, "libvpx"),
    "slow.avi": (9, 1, "mpeg4"),
    "pair.mp4": (4, 5, "libx264"),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_of_samples_exist_in_files(tmp_path, name):
    count, fps, codec = FILES[name]
    path = str(write_video(tmp_path / name, count, fps, codec=codec))
    info = probe_video(path, "data.jsonl:7")
    fields = {"video": name, "conversations": turns("What?", "A cat.")}
    wanted = set(make("video_qa", fields, info=info).images)
    for key in range(30):
        wanted |= set(make("pure_video", fields, info=info, key=str(key)).images)
    times = sorted(frame.seconds for frame in wanted)
    numbers = read_frames(path, times, "data.jsonl:7", fit=number_of)
    # Containers round times: WebM and Matroska to milliseconds.
    assert all(abs(number - t * fps) < 1.05 for number, t in zip(numbers, times, strict=True))
    assert numbers == sorted(numbers) and max(numbers) < count


def test_frames_of_samples_exist_in_folders(tmp_path):
    write_frames(tmp_path / "frames", 12)
    info = probe_video(str(tmp_path / "frames"), "data.jsonl:7")
    loader = ImageLoader(str(tmp_path), SIDE)
    for key in range(10):
        made = make("pure_video", {"video": "frames", "fps": 3}, info=info, key=str(key))
        pixels = loader.load_all(made.images, "data.jsonl:7")
        assert [int(image[0, 0, 0]) // 8 for image in pixels] == [
            int(frame.seconds) for turn in made.turns for frame in media(turn)
        ]


def test_loader_reads_frames_of_a_file(tmp_path):
    write_video(tmp_path / "a.mp4", 30)
    loader = ImageLoader(str(tmp_path), SIDE)
    frames = [VideoFrame("a.mp4", seconds) for seconds in (2.0, 0.5)]
    pixels = loader.load_all(frames, "data.jsonl:7")
    assert [round(float(image[4, 4].mean()) / 8) for image in pixels] == [20, 5]
