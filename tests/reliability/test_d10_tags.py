"""D10: tags and media that differ in number are refused by rule, and never reach a step."""

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.records import RawTurn, Record
from metamorph_jax.data.video import VideoInfo
from tests.kind_samples import make, media, turns

INFO = VideoInfo(3.0, 10.0, 30)
TWO = ["a.png", "b.png"]
FEWER_AND_MORE = {
    "more tags than images": ("conversation", {"image": "a.png"}, ("<image><image>?", "Yes.")),
    "fewer tags than images": ("conversation", {"image": TWO}, ("<image>?", "Yes.")),
    "images without tags": ("conversation", {"image": "a.png"}, ("What?", "Yes.")),
    "surplus tag in an answer": ("image_qa", {"image": "a.png"}, ("<image>?", "<image>")),
    "surplus tag in a later turn": (
        "image_qa",
        {"image": "a.png"},
        ("<image>?", "Yes.", "And <image>?", "No."),
    ),
    "an edit without its answer's tag": ("image_to_image", {"image": TWO}, ("<image> Red.", "Ok")),
    "a request with a second picture": (
        "text_to_image",
        {"image": "a.png"},
        ("Draw a cat.", "<image>, <image>"),
    ),
    "thinking with a missing tag": (
        "visual_thinking",
        {"image": "a.png", "boxes": [{"box": [1, 2, 3, 4]}]},
        ("What?", "A cat."),
    ),
    "two tags for a video": ("video_qa", {"video": "a.mp4"}, ("<video><video>?", "Yes.")),
    "two image tags for a video": ("video_qa", {"video": "a.mp4"}, ("<image>, <image>?", "Yes.")),
    "a video in an answer": ("video_qa", {"video": "a.mp4"}, ("What?", "<video>")),
    "a video's image tag in an answer": ("video_qa", {"video": "a.mp4"}, ("What?", "<image>")),
    "a video and a surplus image tag": (
        "video_qa",
        {"video": "a.mp4", "image": "a.png"},
        ("<video> and <image> and <image>?", "Yes."),
    ),
    "a video and an image without tag": (
        "video_qa",
        {"video": "a.mp4", "image": "a.png"},
        ("<video>?", "Yes."),
    ),
}


@pytest.mark.parametrize("name", FEWER_AND_MORE)
def test_d10_mismatch_is_refused(name):
    kind, fields, talk = FEWER_AND_MORE[name]
    with pytest.raises(BadSample, match=r"^data\.jsonl:7: ") as caught:
        make(kind, fields | {"conversations": turns(*talk)}, info=INFO)
    assert caught.value.reason == "tag_mismatch"


def test_d10_mismatch_of_turns_that_come_cut_up():
    raw = (RawTurn("user", "", (None, "What?", None)), RawTurn("assistant", "", ("A cat.",)))
    record = Record(("a.png",), raw, {}, "data.parquet", 7)
    with pytest.raises(BadSample) as caught:
        make("conversation", record)
    assert caught.value.reason == "tag_mismatch"


@pytest.mark.parametrize(
    ("kind", "fields", "talk", "images"),
    [
        ("conversation", {}, ("What are <video> and <image>?", "Tags like <image>."), 0),
        ("video_qa", {"video": "a.mp4"}, ("<video> and <image>?", "<image> is a tag."), 3),
        ("conversation", {"image": TWO}, ("<image>?", "This: <image>"), 2),
        ("image_qa", {"image": "a.png"}, ("< image > and <IMAGE> and <image>", "One."), 1),
        ("video_qa", {"video": "a.mp4"}, ("What?", "A cat."), 3),
        ("video_qa", {"video": "a.mp4"}, ("Hi.", "Hi.", "<video> What?", "A cat."), 3),
    ],
)
def test_d10_as_many_images_as_media(kind, fields, talk, images):
    made = make(kind, fields | {"conversations": turns(*talk)}, info=INFO)
    assert sum(len(media(turn)) for turn in made.turns) == images == len(made.images)
