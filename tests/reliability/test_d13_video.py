"""D13: videos that are empty, short, cut off, endless, huge or no videos at all."""

import time
import wave

import pytest

from metamorph_jax.data import video
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.video import probe_video, read_frames
from tests.video_files import number_of, write_frames, write_video

WHERE = "data.jsonl:7"


def reason(function, *arguments) -> str:
    with pytest.raises(BadSample) as caught:
        function(*arguments)
    assert str(caught.value).startswith(f"{WHERE}: ")
    return caught.value.reason


def probe(path):
    return probe_video(str(path), WHERE)


def read(path, *seconds):
    return read_frames(str(path), seconds, WHERE)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_d13_no_frames(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", 0)
    assert reason(probe, path) == "unreadable_media"
    assert reason(read, path, 0.0) == "unreadable_media"


def test_d13_one_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1)
    info = probe(path)
    assert info.num_frames == 1 and info.duration_secs > 0 and info.fps > 0
    assert [number_of(frame) for frame in read(path, 0.0, info.duration_secs / 2)] == [0, 0]


def test_d13_rate_of_zero_in_the_head(tmp_path):
    path = write_video(tmp_path / "a.avi", 10, codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8
    data[at : at + 4] = bytes(4)  # microseconds per frame
    at = data.index(b"strh") + 8 + 20
    data[at : at + 8] = bytes(8)  # scale, rate
    path.write_bytes(data)
    info = probe(path)
    assert info.fps > 0 and info.duration_secs > 0
    assert len(read(path, 0.0)) == 1


def test_d13_mp4_without_its_end(tmp_path):
    path = write_video(tmp_path / "a.mp4", 50)
    path.write_bytes(path.read_bytes()[:-200])
    assert reason(probe, path) == "unreadable_media"


def test_d13_mp4_cut_off_behind_its_head(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, options={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    assert reason(probe, path) == "unreadable_media"
    assert reason(read, path, 0.0, 9.5) == "unreadable_media"


def test_d13_webm_cut_off_is_as_long_as_what_is_left(tmp_path):
    path = write_video(tmp_path / "a.webm", 100, codec="libvpx")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    info = probe(path)
    assert 1 < info.duration_secs < 9
    last = info.duration_secs - 0.05
    assert number_of(read(path, last)[0]) == int(last * 10)


def test_d13_frame_behind_the_end(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    assert reason(read, path, 0.0, 30.0) == "unreadable_media"


def test_d13_ten_hours(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1000, 1, times=range(0, 36000, 36), codec="mpeg4")
    began = time.monotonic()
    info = probe(path)
    assert time.monotonic() - began < 1
    assert info.duration_secs == pytest.approx(36000, rel=0.01)
    assert [number_of(frame) for frame in read(path, 0, 18000, 35990)] == [0, 500, 999]


def test_d13_more_than_a_day(tmp_path):
    path = write_video(tmp_path / "a.mkv", 3, 1, times=[0, 1, 100_000], codec="mpeg4")
    assert reason(probe, path) == "too_large_media"


def test_d13_variable_rate(tmp_path):
    path = write_video(tmp_path / "a.mkv", 5, times=[0, 1, 2, 300, 301])
    info = probe(path)
    assert info.fps > 0 and info.duration_secs == pytest.approx(30.2, abs=0.15)
    assert [number_of(frame) for frame in read(path, 0.1, 20.0, 30.1)] == [1, 2, 4]


def test_d13_8k(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1, codec="mpeg4", size=(7680, 4320))
    assert reason(probe, path) == "too_large_media"
    assert reason(read, path, 0.0) == "too_large_media"


def test_d13_too_many_bytes(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 10)
    monkeypatch.setattr(video, "MAX_VIDEO_BYTES", 100)
    assert reason(probe, path) == "too_large_media"


def test_d13_reading_takes_too_long(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 200, key_every=200)
    monkeypatch.setattr(video, "TIMEOUT_SECS", 1e-3)
    assert reason(read, path, 19.0) == "too_large_media"


@pytest.mark.parametrize("content", [b"", b"\0", b"<html>404 not found</html>", b"\0" * 5000])
def test_d13_no_video(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert reason(probe, path) == "unreadable_media"
    assert reason(read, path, 0.0) == "unreadable_media"


def test_d13_sound_only(tmp_path):
    path = tmp_path / "a.mp4"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        file.writeframes(bytes(8000))
    assert reason(probe, path) == "unreadable_media"


def test_d13_damaged_inside_never_raises_anything_else(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    clean = path.read_bytes()
    outcomes = set()
    for start in range(40, len(clean) - 40, len(clean) // 20):
        path.write_bytes(clean[:start] + bytes(range(40)) + clean[start + 40 :])
        try:
            probe(path)
            outcomes.add(len(read(path, 0.0, 3.0, 5.0)))
        except BadSample as error:
            outcomes.add(error.reason)
    assert outcomes <= {3, "unreadable_media", "too_large_media"}
    assert "unreadable_media" in outcomes


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["hls", "concat", "http"],
)
def test_d13_playlists_open_nothing_else(tmp_path, text):
    other = write_video(tmp_path / "other.mp4", 10)
    path = tmp_path / "a.mp4"
    path.write_text(text.format(other))
    assert reason(probe, path) == "unreadable_media"


def test_d13_missing_and_forbidden(tmp_path):
    assert reason(probe, tmp_path / "none.mp4") == "missing_media"
    assert reason(probe_video, "http://127.0.0.1:9/a.mp4", WHERE) == "forbidden_path"
    assert reason(probe_video, "/dev/zero", WHERE) == "forbidden_path"


def test_d13_folders(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert reason(probe, empty) == "unreadable_media"
    folder = write_frames(tmp_path / "frames", 3)
    assert reason(read, folder, 3.0) == "unreadable_media"
    (folder / "frame_1.png").write_bytes(b"no image")
    assert reason(read, folder, 1.0) == "unreadable_media"
    outside = tmp_path / "secret.png"
    outside.write_bytes((folder / "frame_0.png").read_bytes())
    (folder / "frame_2.png").unlink()
    (folder / "frame_2.png").symlink_to(outside)
    assert reason(read, folder, 2.0) == "forbidden_path"
