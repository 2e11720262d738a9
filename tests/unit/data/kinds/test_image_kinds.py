import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.kinds.response_format import REGION_BOX, RESPONSE_FORMATS
from metamorph_jax.data.kinds.wordings import CAPTION_REQUESTS
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import Record
from tests.kind_samples import layout, make, turns


def caption(text: str, *images) -> Record:
    return Record(images or ("a.png",), (), {}, "data.tar", 2, caption=text)


def reason(kind, fields, **more) -> str:
    with pytest.raises(BadSample, match=r"^data\.\w+:\d+: ") as caught:
        make(kind, fields, **more)
    return caught.value.reason


def test_image_qa_takes_turns_as_they_are():
    fields = {"image": "a.png", "conversations": turns("<image>\nWhat?", "A cat.")}
    assert layout(make("image_qa", fields)) == [[("a.png",), "\nWhat?"], ["A cat."]]


def test_caption_becomes_question_and_answer():
    made = [layout(make("image_qa", caption(" A cat. "), key=str(key))) for key in range(100)]
    for question, answer in made:
        assert question[0] == ("a.png",) and answer == ["A cat."]
    assert {question[1].strip() for question, _ in made} == set(CAPTION_REQUESTS)


def test_caption_becomes_a_request_for_an_image():
    record = caption("a <image> of <|eot_id|>", ImageBytes(b"png"))
    assert layout(make("text_to_image", record)) == [
        ["Generate an image of a <image> of <|eot_id|>"],
        ["Here is an image based on your request: ", (ImageBytes(b"png"),)],
    ]


def test_text_to_image_takes_turns_that_answer_with_an_image():
    fields = {"image": "a.png", "conversations": turns("Draw a cat.", "Here: <image>")}
    assert layout(make("text_to_image", fields)) == [["Draw a cat."], ["Here: ", ("a.png",)]]
    fields["conversations"] = turns("<image> What?", "A cat.")
    assert reason("text_to_image", fields) == "wrong_conversation"


@pytest.mark.parametrize("kind", ["image_qa", "text_to_image"])
def test_captions_that_make_no_sample(kind):
    assert reason(kind, caption("  ")) == "wrong_conversation"
    assert reason(kind, caption("two", "a.png", "b.png")) == "tag_mismatch"
    assert reason(kind, {"image": "a.png", "note": "no caption"}) == "malformed_record"


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "a.png", "edited_image": "b.png", "instruction": "Make it red."},
        {"images": ["a.png", "b.png"], "instruction": " Make it red.\n"},
        {
            "image": "a.png",
            "edited_image": {"path": "b.png"},
            "edit": "Make it red.",
        },
        {"image": ["a.png", "b.png"], "conversations": turns("<image> Make it red.", "<image>")},
    ],
)
def test_edits(fields):
    expected = [[("a.png",), " Make it red."], [("b.png",)]]
    assert layout(make("image_to_image", fields)) == expected


def test_edit_of_bytes():
    fields = {"image": "a.png", "edited_image": {"bytes": b"png"}, "edit_prompt": "Red."}
    assert layout(make("image_to_image", fields))[1] == [(ImageBytes(b"png"),)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "a.png", "instruction": "Red."}, "tag_mismatch"),
        ({"image": ["a", "b", "c"], "instruction": "Red."}, "tag_mismatch"),
        ({"image": ["a.png", "b.png"], "instruction": " "}, "malformed_record"),
        ({"image": ["a.png", "b.png"]}, "malformed_record"),
        ({"image": "a.png", "edited_image": 3, "instruction": "Red."}, "malformed_record"),
        ({"image": "a.png", "conversations": turns("<image> Red.", "Fine.")}, "wrong_conversation"),
        ({"image": "a.png", "conversations": turns("Red.", "<image>")}, "wrong_conversation"),
    ],
)
def test_edits_that_make_no_sample(fields, expected):
    assert reason("image_to_image", fields) == expected


@pytest.mark.parametrize("kind", ["conversation", "image_qa", "text_to_image", "image_to_image"])
def test_kinds_without_video_refuse_one(kind):
    record = Record((), (), {}, "data.jsonl", 7, video="a.mp4")
    assert reason(kind, record) == "wrong_conversation"


def test_conversation_needs_turns():
    assert reason("conversation", caption("A cat.")) == "malformed_record"


@pytest.mark.parametrize("name", RESPONSE_FORMATS)
def test_response_format_stands_behind_the_first_question_once(name):
    talk = turns("<image>\nWhat?", "A cat.", "And now?", "A dog.")
    fields = {"image": "a.png", "conversations": talk}
    made = layout(make("image_qa", fields, response_format=name))
    asked = f"\nWhat?\n{RESPONSE_FORMATS[name]}"
    assert made == [[("a.png",), asked], ["A cat."], ["And now?"], ["A dog."]]
    talk[0]["value"] += f"\n{RESPONSE_FORMATS[name]}"
    assert layout(make("image_qa", fields, response_format=name)) == made


def test_response_format_behind_an_image_and_for_boxes():
    fields = {"image": "a.png", "conversations": turns("What?\n<image>", "A cat.")}
    made = layout(make("image_qa", fields, response_format="short_answer"))
    assert made[0] == ["What?\n", ("a.png",), "\n" + RESPONSE_FORMATS["short_answer"]]
    fields["conversations"] = turns("<image>\nthe red cat", "[0.1, 0.25, 0.5, 0.75]")
    made = layout(make("image_qa", fields, response_format="region"))
    assert made[0][1] == f"\nthe red cat\n{REGION_BOX}"
