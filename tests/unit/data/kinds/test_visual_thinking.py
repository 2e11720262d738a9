import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.kinds.wordings import THINKING_REQUESTS, THOUGHTS
from metamorph_jax.data.media import Boxed, Crop, NamedBox
from tests.kind_samples import layout, make, media, turns, words

VISUAL_COT = {
    "image": ["cot/a.jpg", "cot/a.jpg###[10, 20, 30.5, 40]"],
    "conversations": turns(
        "<image>\nWhat colour is the hat? Please provide the bounding box coordinate of the region "
        "that can help you answer the question better.",
        "[0.1, 0.2, 0.3, 0.4]",
        "<image>",
        "Red.",
    ),
}
V_STAR = {
    "image": "a.jpg",
    "target_instances": [
        {"name": "cat", "bbox": [10, 20, 5, 6]},
        {"name": "dog", "bbox": [40, 5, 10, 50]},
    ],
    "conversations": turns(
        "<image>\nIs the cat left of the dog?\nAdditional visual information to focus on: cat, dog",
        "Yes.",
    ),
}
GENERAL = {
    "image": "a.jpg",
    "boxes": [{"box": [1, 2, 3, 4]}],
    "conversations": turns("<image> What?", "A cat.", "Sure?", "Yes."),
}


def test_visual_cot():
    question, answer = make("visual_thinking", VISUAL_COT).turns
    assert media(question) == ["cot/a.jpg"]
    assert words(question).startswith("\n")
    assert words(question).endswith("What colour is the hat?")
    assert media(answer) == [Crop("cot/a.jpg", (10.0, 20.0, 30.5, 40.0))]
    assert words(answer).endswith(" Red.")


def test_v_star_names_its_elements():
    made = make("visual_thinking", V_STAR, thinking_image="boxes")
    question, answer = made.turns
    assert words(question).endswith("Is the cat left of the dog?\n")
    assert words(answer).startswith("Key elements: cat and dog.")
    boxes = (NamedBox((10, 20, 15, 26), "cat"), NamedBox((40, 5, 50, 55), "dog"))
    assert media(answer) == [Boxed("a.jpg", boxes)]


def test_crop_holds_all_boxes():
    _, answer = make("visual_thinking", V_STAR).turns
    assert media(answer) == [Crop("a.jpg", (10, 5, 50, 55))]


def test_only_the_first_answer_thinks():
    made = layout(make("visual_thinking", GENERAL))
    assert made[2:] == [["Sure?"], ["Yes."]]
    assert (Crop("a.jpg", (1.0, 2.0, 3.0, 4.0)),) in made[1]


@pytest.mark.parametrize("how", THOUGHTS)
def test_all_wordings_occur(how):
    seen, asked = set(), set()
    for key in range(300):
        made = layout(make("visual_thinking", GENERAL, key=str(key), thinking_image=how))
        seen.add(made[1][0].strip() if isinstance(made[1][0], str) else "")
        asked.add(made[0][1].strip().removesuffix("What?").strip())
    assert seen == set(THOUGHTS[how]) and asked == set(THINKING_REQUESTS)


def test_conversation_that_already_thinks_is_taken_as_it_is():
    talk = turns("<image> What?", "Look: <image> a cat.")
    fields = {"image": ["a.png", "b.png"], "conversations": talk}
    assert layout(make("visual_thinking", fields)) == [
        [("a.png",), " What?"],
        ["Look: ", ("b.png",), " a cat."],
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"boxes": []}, "malformed_record"),
        ({"boxes": "all"}, "malformed_record"),
        ({"boxes": [{"box": [1, 2, 3, 4]}] * 101}, "malformed_record"),
        ({"boxes": [[1, 2, 3, 4]]}, "malformed_record"),
        ({"boxes": [{"box": [3, 2, 1, 4]}]}, "malformed_record"),
        ({"boxes": [{"box": [1, 2, 3]}]}, "malformed_record"),
        ({"boxes": [{"box": [1, 2, float("nan"), 4]}]}, "malformed_record"),
        ({"boxes": [{"box": [1, True, 3, 4]}]}, "malformed_record"),
        ({"boxes": [{"box": [1, 2, 3, 10**400]}]}, "malformed_record"),
        ({"boxes": [{"box": [1, 2, 3, 4], "name": 5}]}, "malformed_record"),
        ({"conversations": turns("<image>", "A cat.")}, "wrong_conversation"),
        ({"conversations": turns("<image> What?", "")}, "wrong_conversation"),
        ({"conversations": turns("<image> What?")}, "wrong_conversation"),
        ({"conversations": turns("What?", "<image>")}, "wrong_conversation"),
    ],
)
def test_records_that_make_no_sample(changes, expected):
    with pytest.raises(BadSample, match=r"^data\.jsonl:7: ") as caught:
        make("visual_thinking", GENERAL | changes)
    assert caught.value.reason == expected


@pytest.mark.parametrize("mark", ["[1,2,3]", "[5,2,3,4]", "", "[[1],2,3,4]", "[" * 5000])
def test_visual_cot_boxes_that_are_none(mark):
    with pytest.raises(BadSample) as caught:
        make("visual_thinking", VISUAL_COT | {"image": ["a.jpg", f"a.jpg###{mark}"]})
    assert caught.value.reason == "malformed_record"


def test_visual_cot_of_two_turns():
    with pytest.raises(BadSample) as caught:
        make("visual_thinking", VISUAL_COT | {"conversations": turns("<image> What?", "Red.")})
    assert caught.value.reason == "wrong_conversation"
