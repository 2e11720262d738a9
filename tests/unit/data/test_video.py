import os
import struct

import pytest

from metamorph_jax.data import video_reader
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.video import VideoInfo, probe_video, read_frames
from tests.video_files import SIDE, number_of, write_frames, write_video

CODECS = {"mp4": "libx264", "webm": "libvpx", "mkv": "libx264", "avi": "mpeg4"}


@pytest.fixture
def decodes(monkeypatch):
    """Counts the frames that are decoded."""
    counted = []
    advance = video_reader.FrameReader._advance

    def count(reader):
        counted.append(reader)
        advance(reader)

    monkeypatch.setattr(video_reader.FrameReader, "_advance", count)
    return counted


@pytest.mark.parametrize("suffix", CODECS)
def test_length_and_rate(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", 45, codec=CODECS[suffix])
    info = probe_video(str(path), "data.jsonl:3")
    assert info.num_frames == 45 and not info.is_folder
    assert info.duration_secs == pytest.approx(4.5) and info.fps == pytest.approx(10)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("key_every", [1, 12, 250])
def test_the_frame_shown_at_each_time_in_any_order(tmp_path, suffix, key_every):
    path = write_video(tmp_path / f"a.{suffix}", 60, codec=CODECS[suffix], key_every=key_every)
    for times in ([3.14, 0.0, 5.99, 3.1, 3.14], [0.05, 0.1, 0.15], [5.9], [2.0, 2.0]):
        frames = read_frames(str(path), times, "data.jsonl:3")
        assert [number_of(frame) for frame in frames] == [int(t * 10 + 1e-6) for t in times]
        assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (SIDE, SIDE))}


def test_frames_with_reordering_and_long_distances_between_key_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", 300, key_every=50)
    times = [index * 0.7 for index in range(42)]
    frames = read_frames(str(path), times, "data.jsonl:3")
    assert [number_of(frame) for frame in frames] == [int(t * 10 + 1e-6) for t in times]


def test_few_frames_of_a_long_video_are_reached_by_key_frames(tmp_path, decodes):
    path = write_video(tmp_path / "a.mp4", 300, key_every=10)
    read_frames(str(path), [0.0, 14.0, 29.0], "data.jsonl:3")
    assert len(decodes) < 40


def test_dense_times_are_decoded_on_without_jumping_back(tmp_path, decodes):
    path = write_video(tmp_path / "a.mp4", 200, key_every=200)
    read_frames(str(path), [index / 4 for index in range(80)], "data.jsonl:3")
    assert len(decodes) < 2 * 200


def test_variable_rate_shows_what_is_on_screen(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4, times=[0, 1, 20, 50], codec="mpeg4")
    frames = read_frames(str(path), [0.05, 1.9, 2.0, 4.9, 5.0], "data.jsonl:3")
    assert [number_of(frame) for frame in frames] == [0, 1, 2, 2, 3]
    assert probe_video(str(path), "data.jsonl:3").fps == pytest.approx(4 / 5.1, rel=0.05)


def test_each_frame_is_fitted_as_it_comes(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    assert read_frames(str(path), [0.4, 0.0], "data.jsonl:3", fit=number_of) == [4, 0]


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_of_the_head_is_honoured(tmp_path, turn):
    """The track header's matrix says how players turn the picture clockwise."""
    path = write_video(tmp_path / "a.mp4", 3, size=(64, 32))
    data = bytearray(path.read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    at = data.index(b"tkhd") + 4 + 40  # version, times, ids, layer, volume
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    (frame,) = read_frames(str(path), [0.2], "data.jsonl:3")
    # Frame 2 is dark grey on the left (16) and black on the right; find where the grey went.
    assert frame.size == ((64, 32) if turn == 180 else (32, 64))
    edges = {
        "left": frame.getpixel((2, frame.height // 2)),
        "right": frame.getpixel((frame.width - 3, frame.height // 2)),
        "top": frame.getpixel((frame.width // 2, 2)),
        "bottom": frame.getpixel((frame.width // 2, frame.height - 3)),
    }
    grey, black = {90: ("top", "bottom"), 180: ("right", "left"), 270: ("bottom", "top")}[turn]
    assert edges[grey][0] > 10 > edges[black][0]


def test_folder_of_frames_is_sorted_by_number(tmp_path):
    folder = write_frames(tmp_path / "frames", 12)
    (folder / "notes.txt").write_text("no frame")
    assert probe_video(str(folder), "data.jsonl:3") == VideoInfo(12.0, 1.0, 12, is_folder=True)
    frames = read_frames(str(folder), [11.0, 2.0, 2.5], "data.jsonl:3")
    assert [number_of(frame) for frame in frames] == [11, 2, 2]


def test_messages_name_the_record_and_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    with pytest.raises(BadSample, match=r"^data\.jsonl:3: video '.*a\.mp4' cannot be decoded"):
        probe_video(str(path), "data.jsonl:3")


def test_folder_of_frames_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_frames(tmp_path / "frames", 2)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # a mode would not stop the superuser
    for function in (probe_video, lambda *args: read_frames(args[0], [0.0], args[1])):
        with pytest.raises(
            BadSample, match=r"^data.jsonl:3: folder .* Permission denied"
        ) as caught:
            function(str(path), "data.jsonl:3")
        assert caught.value.reason == "missing_media"


def test_a_link_that_took_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "link.mp4").symlink_to(write_video(tmp_path / "a.mp4", 2))
    with pytest.raises(BadSample, match="cannot be read") as caught:
        probe_video(str(tmp_path / "link.mp4"), "data.jsonl:3")
    assert caught.value.reason == "missing_media"
