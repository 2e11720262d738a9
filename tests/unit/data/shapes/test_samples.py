"""Records: what they say is what their pictures show, and the splits share nothing."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.shapes import questions as texts
from metamorph_jax.data.shapes.oracle import Wanted, read_picture, score_picture
from metamorph_jax.data.shapes.samples import KINDS, make_sample
from metamorph_jax.data.shapes.scene import (
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    split_of,
)

COUNT = 150
ALL = [(kind, split) for kind in KINDS for split in SPLITS]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def seen(data: bytes) -> Scene:
    """The scene in a picture, as the oracle reads it."""
    return Scene(tuple(thing.item for thing in read_picture(pixels(data))))


def said(fields: dict) -> tuple[str, str]:
    asked, answer = (turn["value"] for turn in fields["conversations"])
    return asked.removeprefix("<image>\n"), answer


@pytest.mark.parametrize("kind,split", ALL)
def test_a_record_depends_on_kind_split_and_number_alone(kind, split):
    assert make_sample(kind, split, 7) == make_sample(kind, split, 7)
    assert make_sample(kind, split, 7) != make_sample(kind, split, 8)


@pytest.mark.parametrize("kind", ["image_qa", "visual_thinking"])
def test_answers_are_what_the_picture_says(kind):
    for number in range(COUNT):
        fields = make_sample(kind, "train", number)
        scene = seen(fields["image"][0])
        found = texts.questions(scene, fields["task"])
        assert said(fields) in {(question.text, question.answer) for question in found}


def test_boxes_hold_the_shape_that_is_asked_about():
    for number in range(COUNT):
        fields = make_sample("visual_thinking", "heldout", number)
        (left, top, right, bottom), name = fields["boxes"][0]["box"], fields["boxes"][0]["name"]
        (item,) = (item for item in seen(fields["image"][0]).items if item.name == name)
        inside = item.box
        assert left <= inside[0] and top <= inside[1] and right >= inside[2] and bottom >= inside[3]
        crop = pixels(fields["image"][0])[top:bottom, left:right]
        large = np.asarray(Image.fromarray(crop).resize((32, 32), Image.Resampling.BICUBIC))
        things = sorted(read_picture(large), key=lambda thing: -thing.side)
        assert things[0].item.name == name


def test_video_answers_are_what_the_frames_say():
    for number in range(COUNT):
        fields = make_sample("video_qa", "train", number)
        first, *_, last = map(seen, fields["video"])
        start = {item.name: item for item in first.items}
        ends = {item.name: item for item in last.items}
        (moved,) = (name for name in start if start[name] != ends[name])
        step = (ends[moved].x - start[moved].x, ends[moved].y - start[moved].y)
        way = {(14, 0): "to the right", (-14, 0): "to the left", (0, 14): "down", (0, -14): "up"}
        expected = {
            "direction": f"It moves {way[step]}.",
            "mover": f"The {moved} moves.",
            "end": f"At the {ends[moved].place}.",
        }
        assert said(fields)[1] == expected[fields["task"]]


def test_a_pure_video_can_be_told_from_a_frame_at_either_end():
    for number in range(60):
        fields = make_sample("pure_video", "train", number)
        first = seen(fields["video"][0]).items[0]
        assert 16 in (first.x, first.y) and {first.x, first.y} & {9, 23}


def test_requests_fit_their_pictures_and_no_other():
    others = 0
    for number in range(COUNT):
        fields = make_sample("text_to_image", "heldout", number)
        other = make_sample("text_to_image", "heldout", number + 1)
        wanted = [Wanted(**want) for want in fields["wanted"]]
        relations = [tuple(relation) for relation in fields["relations"]]
        assert score_picture(pixels(fields["image"][0]), wanted, relations).all
        others += score_picture(pixels(other["image"][0]), wanted, relations).all
        for want in fields["wanted"]:
            assert want["color"] in said(fields)[0] and want["shape"] in said(fields)[0]
    assert others < 0.1 * COUNT


def test_edits_change_what_they_say_and_nothing_else():
    for number in range(COUNT):
        fields = make_sample("image_to_image", "train", number)
        before, after = map(seen, fields["image"])
        asked, answer = said(fields)
        assert answer == "<image>"
        gone, come = (
            set(a.items) - set(b.items) for a, b in itertools.permutations((before, after))
        )
        assert len(gone) == 1
        if fields["task"] == "remove":
            assert not come and asked == f"Remove the {gone.pop().name}."
            continue
        (old,), (new,) = gone, come
        changed = {n for n in ("shape", "color", "size") if getattr(old, n) != getattr(new, n)}
        assert changed == {fields["task"]} - {"place"}
        assert getattr(new, fields["task"]) in asked


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "video" not in kind])
def test_records_end_in_a_scene_of_their_split_and_show_none_of_a_later_one(kind):
    for number, split in itertools.product(range(COUNT), SPLITS):
        shown = [
            split_of(seen(data).description) for data in make_sample(kind, split, number)["image"]
        ]
        assert shown[-1] == split
        assert set(shown) <= set(SPLITS[: SPLITS.index(split) + 1])


def test_splits_of_videos_share_no_video():
    for kind in ("video_qa", "pure_video"):
        videos = [
            {tuple(make_sample(kind, split, n)["video"]) for n in range(COUNT)} for split in SPLITS
        ]
        assert all(not one & other for one, other in itertools.combinations(videos, 2))


def test_no_question_has_two_answers_and_every_answer_occurs():
    answers: dict[str, set[str]] = {}
    for number in range(1200):
        fields = make_sample("image_qa", "train", number)
        answers.setdefault(fields["task"], set()).add(said(fields)[1])
        found = texts.questions(seen(fields["image"][0]), fields["task"])
        assert len({question.text for question in found}) == len(found)
    sizes = {"color": COLORS, "shape": SHAPES, "size": SIZES, "place": PLACES, "relation": (0, 1)}
    assert {kind: len(values) for kind, values in sizes.items()} == {
        kind: len(answers[kind]) for kind in sizes
    }
    counts = {answer.removesuffix(".").split()[-1] for answer in answers["count"]}
    assert counts == {"zero", "one", "two", "three"}
