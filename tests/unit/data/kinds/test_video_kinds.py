import itertools

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.kinds.video_qa import thin
from metamorph_jax.data.media import ImageBytes, VideoFrame
from metamorph_jax.data.records import RawTurn, Record
from metamorph_jax.data.video import VideoInfo
from tests.kind_samples import layout, make, media, turns, words

FIVE_SECS = VideoInfo(5.0, 25.0, 125)
FRAMES = tuple(ImageBytes(bytes([number])) for number in range(8))


def asked(question: str, **more) -> dict:
    return {"video": "a.mp4", "conversations": turns(question, "A cat.")} | more


def in_row(frames=FRAMES, raw=(), **extra) -> Record:
    return Record((), tuple(raw), extra, "data.parquet", 7, video=tuple(frames))


def seconds(turn) -> list[float]:
    return [frame.seconds for frame in media(turn)]


@pytest.mark.parametrize("question", ["What?", "<video>What?", "<image>What?"])
def test_frames_stand_before_the_first_question(question):
    made = make("video_qa", asked(question), info=FIVE_SECS)
    frames = [(VideoFrame("a.mp4", float(second)),) for second in range(5)]
    assert layout(made) == [[*frames, "What?"], ["A cat."]]


def test_frames_stand_where_the_tag_does():
    info = VideoInfo(2.0, 25.0, 50)
    made = make("video_qa", asked("Look at\n<video>\nWhat?"), info=info)
    assert [type(part) for part in layout(made)[0]] == [str, tuple, tuple, str]


def test_metamorph_writes_the_video_under_image():
    fields = {"image": "clips/a.MP4", "conversations": turns("<image>What?", "A cat.")}
    made = make("video_qa", fields, info=FIVE_SECS)
    assert media(made.turns[0])[4] == VideoFrame("clips/a.MP4", 4.0)


def test_a_video_and_images_keep_their_places():
    fields = asked("<image> or <video> or <image>?", image=["a.png", "b.png"])
    made = make("video_qa", fields, info=VideoInfo(2.0, 25.0, 50))
    frames = [(VideoFrame("a.mp4", 0.0),), (VideoFrame("a.mp4", 1.0),)]
    assert layout(made)[0] == [("a.png",), " or ", *frames, " or ", ("b.png",), "?"]


def test_turns_that_come_cut_up():
    pieces = ("See ", None, " <video> What?")
    raw = [RawTurn("user", "", pieces), RawTurn("assistant", "", ("A cat.",))]
    made = layout(make("video_qa", in_row(FRAMES[:2], raw)))
    assert made[0] == ["See ", (FRAMES[0],), (FRAMES[1],), " <video> What?"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0.04, 1), (1.0, 1), (1.01, 2), (45.0, 45), (45.5, 45), (600.0, 45), (86400.0, 45)],
)
def test_one_frame_a_second_at_most_45(length, expected):
    info = VideoInfo(length, 25.0, max(round(25 * length), 1))
    times = seconds(make("video_qa", asked("What?"), info=info).turns[0])
    assert len(times) == expected and times[0] == 0 and all(0 <= t < length for t in times)
    gaps = {b - a for a, b in itertools.pairwise(times)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_row_limits_the_frames():
    made = make("video_qa", asked("<image>What?", image="b.png"), info=FIVE_SECS, max_images=4)
    assert seconds_of_video(made) == [0.0, 2.0, 4.0]
    with pytest.raises(BadSample) as caught:
        make("video_qa", asked("<image>What?", image="b.png"), info=FIVE_SECS, max_images=1)
    assert caught.value.reason == "over_long"


def seconds_of_video(made) -> list[float]:
    return [frame.seconds for frame in media(made.turns[0]) if isinstance(frame, VideoFrame)]


def test_thinning_is_even_and_keeps_both_ends():
    for count in range(1, 60):
        for limit in range(1, 50):
            kept = list(thin(count, limit))
            assert len(kept) == len(set(kept)) == min(count, limit)
            assert kept == sorted(kept) and 0 <= kept[0] and kept[-1] < count
            assert limit == 1 or (kept[0], kept[-1]) == (0, count - 1)


def test_frames_in_the_row_and_their_rate():
    raw = [RawTurn("human", "What?"), RawTurn("gpt", "A cat.")]
    assert media(make("video_qa", in_row(raw=raw)).turns[0]) == list(FRAMES)
    assert media(make("video_qa", in_row(raw=raw, fps=None)).turns[0]) == list(FRAMES)
    assert media(make("video_qa", in_row(raw=raw, fps=2)).turns[0]) == list(FRAMES[::2])
    assert media(make("video_qa", in_row(raw=raw, fps=0.5)).turns[0]) == list(FRAMES)


def test_folder_frames_are_named_by_their_number():
    info = VideoInfo(6.0, 1.0, 6, is_folder=True)
    made = make("video_qa", asked("What?", video="clips/a", fps=2.0), info=info)
    assert media(made.turns[0]) == [VideoFrame("clips/a", float(number)) for number in (0, 2, 4)]


@pytest.mark.parametrize("fps", [0, -1, 10**400, "fast", True, float("nan"), float("inf")])
def test_rates_that_are_none(fps):
    with pytest.raises(BadSample) as caught:
        make("pure_video", in_row(fps=fps))
    assert caught.value.reason == "malformed_record"


@pytest.mark.parametrize("kind", ["video_qa", "pure_video"])
def test_record_without_video(kind):
    with pytest.raises(BadSample) as caught:
        make(kind, {"conversations": turns("What?", "A cat.")})
    assert caught.value.reason == "malformed_record"


def test_two_frames_of_a_row_predict_the_second():
    question, answer = make("pure_video", in_row(FRAMES[:2])).turns
    assert media(question) == [FRAMES[0]] and media(answer) == [FRAMES[1]]
    said = words(question)
    assert "1 second" in said or said == "\nWhat happens next in this video? Show the frame."


@pytest.mark.parametrize(
    "record",
    [in_row(FRAMES[:1]), in_row(FRAMES[:1], fps=30), in_row([])],
)
def test_too_few_frames(record):
    with pytest.raises(BadSample) as caught:
        make("pure_video", record)
    expected = "nothing_to_learn" if record.video else "malformed_record"
    assert caught.value.reason == expected


def test_one_frame_in_a_file_and_a_row_for_one_image():
    with pytest.raises(BadSample) as caught:
        make("pure_video", {"video": "a.mp4"}, info=VideoInfo(0.04, 25.0, 1))
    assert caught.value.reason == "nothing_to_learn"
    with pytest.raises(BadSample) as caught:
        make("pure_video", {"video": "a.mp4"}, info=FIVE_SECS, max_images=1)
    assert caught.value.reason == "over_long"
