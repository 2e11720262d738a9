"""Pure video: no sample promises frames that it does not have."""

import re
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.kinds.wordings import TWO_FRAMES, VIDEO_ANSWERS, VIDEO_REQUESTS
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import Record
from metamorph_jax.data.video import VideoInfo
from tests.kind_samples import make, media, words

TASK_OF_ANSWER = {
    text.split("{")[0].strip(): task for task, text in VIDEO_ANSWERS.items() if "{" not in text
}
many = settings(deadline=None, max_examples=300)
keys = st.integers(0, 10**6).map(str)
rooms = st.one_of(st.none(), st.integers(2, 100))


def task_of(conversation) -> str:
    said = words(conversation.turns[1]).strip()
    return TASK_OF_ANSWER.get(said, "interval" if "apart" in said else "two")


def check(conversation, times_of, max_images) -> str:
    """Checks one sample and returns its task."""
    question, answer = conversation.turns
    task = task_of(conversation)
    shown, given_ = times_of(question), times_of(answer)
    assert shown and words(answer).strip() and (given_ or task == "interval")
    assert max_images is None or len(shown) + len(given_) <= max_images
    assert len(shown) <= 45 and len(given_) <= 45
    counts = list(map(int, re.findall(r"(\d+) frames?\b", words(question))))
    promised = [n for n in counts if n != len(shown)] or counts
    if task not in ("two", "interval"):
        assert len(given_) in promised and set(counts) <= {len(shown), len(given_)}
    if task == "interval":
        assert counts == [len(shown)] and not given_
    check_order(task, shown, given_)
    return task


def check_order(task: str, shown: list[float], given_: list[float]) -> None:
    if task in ("following", "continuation", "two", "next"):
        assert shown + given_ == sorted({*shown, *given_})
    elif task == "reverse":
        assert shown + given_ == sorted({*shown, *given_}, reverse=True)
    elif task == "missing":
        both = sorted({*shown, *given_})
        assert both[::2] == shown and both[1::2] == given_
    elif task == "order":
        assert given_ == sorted(shown) != shown
    else:
        assert shown == sorted(set(shown))


@many
@given(st.floats(0.02, 50_000), st.floats(0.01, 240), keys, rooms)
def test_samples_of_files(duration, fps, key, room):
    info = VideoInfo(duration, fps, max(round(duration * fps), 1))

    def times(turn):
        frames = media(turn)
        assert all(frame.video == "a.mp4" and 0 <= frame.seconds < duration for frame in frames)
        return [frame.seconds for frame in frames]

    try:
        made = make("pure_video", {"video": "a.mp4"}, info=info, key=key, max_images=room)
    except BadSample as error:
        assert error.reason == "nothing_to_learn"
        assert duration * min(fps / 2, 10) <= 1 + 1e-3 or duration * fps <= 1.5
        return
    check(made, times, room)
    assert made == make("pure_video", {"video": "a.mp4"}, info=info, key=key, max_images=room)


@many
@given(st.integers(2, 60), st.sampled_from([0.5, 1, 2, 3, 10, 24.0]), keys, rooms)
def test_samples_of_frames_in_the_row(count, fps, key, room):
    frames = [ImageBytes(number.to_bytes(2, "big")) for number in range(count)]
    record = Record((), (), {"fps": fps}, "data.parquet", 7, video=tuple(frames))
    try:
        made = make("pure_video", record, key=key, max_images=room)
    except BadSample as error:
        assert error.reason == "nothing_to_learn" and (count - 1) / fps <= 0.1 + 1e-6
        return
    check(made, lambda turn: [frames.index(frame) for frame in media(turn)], room)


def test_all_tasks_and_wordings_occur_alike_often():
    info, seen, said = VideoInfo(20.0, 25.0, 500), Counter(), set()
    for key in range(1400):
        made = make("pure_video", {"video": "a.mp4"}, info=info, key=str(key))
        task = check(made, lambda turn: [frame.seconds for frame in media(turn)], None)
        seen[task] += 1
        if task != "two":
            pattern = re.sub(r"\d+(\.\d+)? (frame|second)s?", "#", words(made.turns[0]).strip())
            said.add((task, pattern))
    two = seen.pop("two")
    assert set(seen) == set(VIDEO_REQUESTS) and max(seen.values()) < 1.5 * min(seen.values())
    assert two < 300
    written = {
        (task, re.sub(r"\{\w+\}", "#", text))
        for task, texts in VIDEO_REQUESTS.items()
        for text in texts
    }
    assert said == written


def test_all_paraphrases_of_two_frames_occur():
    info = VideoInfo(0.2, 20.0, 4)
    said = set()
    for key in range(300):
        made = make("pure_video", {"video": "a.mp4"}, info=info, key=str(key))
        assert task_of(made) == "two"
        said.add(words(made.turns[0]).strip().replace("0.1 seconds", "{apart}"))
    assert said == set(TWO_FRAMES) and len(TWO_FRAMES) == 12
    assert sum("{apart}" not in text for text in TWO_FRAMES) == 1
