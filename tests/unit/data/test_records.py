import base64

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import parse_record

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
PNG = b"\x89PNG"
SAME = ImageBytes(PNG)


def parse(**fields):
    return parse_record(fields, "f", 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a.png", ("a.png",)),
        (["a.png", "b.png"], ("a.png", "b.png")),
        ([], ()),
        (PNG, (SAME,)),
        ([PNG, "a.png"], (SAME, "a.png")),
        ({"bytes": PNG, "path": None}, (SAME,)),
        ({"bytes": PNG, "path": "a.png"}, (SAME,)),
        ({"bytes": None, "path": "a.png"}, ("a.png",)),
        ({"path": "a.png"}, ("a.png",)),
        ([{"bytes": PNG, "path": "a.png"}] * 2, (SAME, SAME)),
        ({"bytes_b64": base64.b64encode(PNG).decode()}, (SAME,)),
        (SAME, (SAME,)),
        *((absent, ()) for absent in (None, "", "None", "none", "nan", "NaN", float("nan"))),
    ],
)
@pytest.mark.parametrize("key", ["image", "images"])
def test_images(key, image, expected):
    record = parse(conversations=TURNS, **{key: image})
    assert record.images == expected and record.extra == {}


def test_bytes_are_named_for_messages():
    images = parse(images=[PNG, {"bytes": PNG, "path": "a.png"}], caption="x").images
    assert [image.name for image in images] == ["images[0]", "a.png"]
    assert parse(image=PNG, caption="x").images[0].name == "image"


def test_absent_key_beside_a_present_one():
    assert parse(image=None, images=["a.png"], conversations=None, messages=TURNS).turns
    assert parse(image="", images=["a.png"], caption="x").images == ("a.png",)


@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize(("speaker", "text"), [("from", "value"), ("role", "content")])
def test_turns(key, speaker, text):
    turns = [{speaker: "user", text: "Hi <image>"}, {speaker: "gpt", text: ""}]
    record = parse(**{key: turns})
    assert [(turn.speaker, turn.text) for turn in record.turns] == [
        ("user", "Hi <image>"),
        ("gpt", ""),
    ]
    assert record.turns[0].pieces is None


def test_turns_that_are_cut_up():
    content = [{"type": "text", "text": "<image>"}, {"type": "image"}, {"type": "text", "text": ""}]
    record = parse(messages=[{"role": "user", "content": content}], image="a.png")
    assert record.turns[0].pieces == ("<image>", None, "")
    assert record.images == ("a.png",)


def test_images_inside_turns():
    content = [{"type": "image", "image": name} for name in ("a.png", {"bytes": PNG})]
    record = parse(messages=[{"role": "user", "content": content}])
    assert record.turns[0].pieces == (None, None)
    assert record.images == ("a.png", SAME)


def test_columns_of_a_table_that_are_empty_in_a_row():
    turn = {"from": None, "value": None, "role": "user", "content": "Hi", "name": None}
    piece = {"type": "image", "text": None, "image": None}
    record = parse(messages=[turn, {"role": "assistant", "content": [piece]}], image="a.png")
    assert record.turns[0].text == "Hi" and record.turns[1].pieces == (None,)


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("a.mp4", "a.mp4"),
        (["0.png", PNG], ("0.png", SAME)),
        (None, None),
        ("", None),
        ("nan", None),
    ],
)
def test_video(video, expected):
    record = parse(video=video, conversations=TURNS)
    assert record.video == expected and record.extra == {}


def test_caption_and_everything_else():
    record = parse(image="a.png", caption="a cat", bbox=[1, 2], id=7)
    assert record.caption == "a cat" and record.turns == ()
    assert record.extra == {"bbox": [1, 2], "id": 7}
    assert record.where == "f:3"
    assert parse(conversations=TURNS, caption=float("nan")).caption is None


BAD = {
    "no object": ([1], "the record is a list"),
    "nothing": ({}, "'conversations' is missing (found nothing)"),
    "nothing of use": ({"id": 3, "image": None}, "(found 'id', 'image')"),
    "no turns": ({"conversations": []}, "'conversations' is an empty list"),
    "turns of text": ({"messages": "hi"}, "'messages' is a string"),
    "turn of text": ({"conversations": ["hi"]}, "conversations[0] is a string"),
    "turn without value": ({"conversations": [{"from": "gpt"}]}, "has no 'value'"),
    "turn without content": ({"messages": [{"role": "user"}]}, "has no 'content'"),
    "turn without speaker": ({"conversations": [{"value": "x"}]}, "has no 'from'"),
    "null text": (
        {"conversations": [{"from": "gpt", "value": None}]},
        "conversations[0]['value'] is null",
    ),
    "list where text must be": (
        {"conversations": [{"from": "gpt", "value": []}]},
        "conversations[0]['value'] is an empty list",
    ),
    "number as speaker": ({"messages": [{"role": 1, "content": "x"}]}, "['role'] is a number"),
    "piece of text": ({"messages": [{"role": "u", "content": ["x"]}]}, "content'][0] is a string"),
    "piece of another type": (
        {"messages": [{"role": "u", "content": [{"type": "video"}]}]},
        "is of type 'video'; expected",
    ),
    "piece without text": (
        {"messages": [{"role": "u", "content": [{"type": "text", "text": None}]}]},
        "is of type 'text'; expected",
    ),
    "images in two places": (
        {
            "image": "a.png",
            "messages": [{"role": "u", "content": [{"type": "image", "image": "b.png"}]}],
        },
        "images stand both in the messages and beside them",
    ),
    "two columns of images": ({"image": "a", "images": ["b"]}, "are both there"),
    "two columns of turns": ({"conversations": TURNS, "messages": TURNS}, "are both there"),
    "number as image": ({"image": 3}, "'image' holds a number"),
    "object as image": ({"image": ["a", {}]}, "'image[1]' holds an empty dict"),
    "null in a list": ({"images": ["a", None]}, "'images[1]' holds null"),
    "empty path in a list": ({"images": [""]}, "'images[0]' holds an empty string"),
    "image of nothing": ({"image": {"bytes": None, "path": None}}, "'image' holds null"),
    "no base64": ({"image": {"bytes_b64": "%"}}, "is not base64"),
    "number as base64": ({"image": {"bytes_b64": 3}}, "is not base64"),
    "number as video": ({"video": 3}, "'video' is a number"),
    "no frames": ({"video": []}, "'video' is an empty list"),
    "number as caption": ({"caption": 3}, "'caption' is a number"),
    "half a pair in a path": ({"image": "\ud83d"}, "half of a surrogate pair"),
    "half a pair in a text": (
        {"conversations": [{"from": "gpt", "value": "\ud83d"}]},
        "half of a surrogate pair",
    ),
    "half a pair in a speaker": (
        {"conversations": [{"from": "\udc00", "value": "x"}]},
        "half of a surrogate pair",
    ),
    "strange object": ({"image": object()}, "of type object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_record_is_named(name):
    fields, message = BAD[name]
    with pytest.raises(BadSample) as caught:
        parse_record(fields, "f", 3)
    assert str(caught.value).startswith("f:3: ")
    assert message in str(caught.value)
    assert caught.value.reason == "malformed_record"


def test_image_of_no_bytes():
    with pytest.raises(BadSample, match="of no bytes") as caught:
        parse(image=b"", caption="x")
    assert caught.value.reason == "unreadable_media"
