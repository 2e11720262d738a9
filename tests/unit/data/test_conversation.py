import pytest

from metamorph_jax.data.conversation import Image, Text, Turn, read_conversation
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import RawTurn, Record, parse_record
from tests.data_files import record


def dialogue(*turns, images=()):
    conversations = [{"from": speaker, "value": text} for speaker, text in turns]
    return parse_record({"image": list(images), "conversations": conversations}, "d.jsonl", 3)


def test_tags_become_images_in_order():
    found = read_conversation(record("<image>\nLook", "A <image> b<image>", ["1", "2", "3"]))
    assert found.turns == (
        Turn("user", (Image("1"), Text("\nLook"))),
        Turn("assistant", (Text("A "), Image("2"), Text(" b"), Image("3"))),
    )
    assert [turn.is_answer for turn in found.turns] == [False, True]
    assert found.images == ("1", "2", "3")
    assert found.where == "data.jsonl:1"


@pytest.mark.parametrize(
    "text",
    ["<image >", "< image>", "<Image>", "<image_start>", "<|image|>", "<video>", "&lt;image"],
)
def test_what_merely_looks_like_a_tag_is_text(text):
    assert read_conversation(record(text, "ok")).turns[0].parts == (Text(text),)


@pytest.mark.parametrize(
    ("question", "images", "counts", "listed", "advice"),
    [
        (
            "<image><image>",
            ["a.png"],
            "2 <image> tag(s), but the record lists 1",
            "'a.png'",
            "list",
        ),
        ("no tag", ["a.png"], "0 <image> tag(s), but the record lists 1", "'a.png'", "put one"),
    ],
)
def test_tags_and_images_must_agree(question, images, counts, listed, advice):
    with pytest.raises(BadSample) as caught:
        read_conversation(record(question, "ok", images, line=12))
    assert caught.value.reason == "tag_mismatch"
    message = str(caught.value)
    assert message.startswith("data.jsonl:12: ")
    assert counts in message and listed in message and advice in message


def test_leading_answer_is_dropped_with_its_image():
    found = read_conversation(
        dialogue(("gpt", "<image>"), ("human", "<image> Hi"), ("gpt", "Yes"), images=["1", "2"])
    )
    assert [turn.role for turn in found.turns] == ["user", "assistant"]
    assert found.images == ("2",)


def test_system_turn_stays_in_front():
    found = read_conversation(
        dialogue(("system", "Be brief."), ("gpt", "Hi"), ("user", "a"), ("assistant", "b"))
    )
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]


def test_empty_turn_has_no_parts():
    assert read_conversation(record("Say nothing.", "")).turns[1] == Turn("assistant", ())


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("bot", "Hi")], "conversations[0] is from 'bot'; expected one of 'human'"),
        ([("gpt", "Hi")], "no turn by the user is left"),
        ([("system", "Hi")], "no turn by the user is left"),
        ([("human", "a"), ("human", "b")], "turn 2 of the dialogue is by the user"),
        (
            [("human", "a"), ("gpt", "b"), ("gpt", "c")],
            "turn 3 of the dialogue is by the assistant",
        ),
        ([("human", "a"), ("system", "b")], "turn 2 of the dialogue is by the system"),
    ],
)
def test_speakers_are_known_and_alternate(turns, message):
    with pytest.raises(BadSample) as caught:
        read_conversation(dialogue(*turns))
    assert caught.value.reason == "wrong_conversation"
    assert str(caught.value).startswith("d.jsonl:3: ")
    assert message in str(caught.value)


def test_without_images_a_tag_is_text():
    found = read_conversation(record("What does <image> mean?", "<image>"))
    assert found.turns[0].parts == (Text("What does <image> mean?"),)
    assert found.images == ()


def test_files_that_cut_turns_up_are_taken_at_their_word():
    picture = ImageBytes(b"x")
    turns = (RawTurn("user", "", ("See <image>", None, "")), RawTurn("assistant", "", ("ok",)))
    found = read_conversation(Record((picture,), turns, {}, "p.parquet", 2))
    assert found.turns[0].parts == (Text("See <image>"), Image(picture))
    assert found.images == (picture,)
    with pytest.raises(BadSample, match=r"0 image\(s\): none"):
        read_conversation(Record((), turns, {}, "p.parquet", 2))
