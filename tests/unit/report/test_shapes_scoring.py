"""Right answers about shapes are counted right, and those of another case are not."""

import dataclasses

import numpy as np
import pytest

from metamorph_jax.data.shapes.oracle import Wanted
from metamorph_jax.errors import UserError
from metamorph_jax.report.pixel_painter import PixelPainter
from metamorph_jax.report.shapes_cases import KINDS, commonest_answers, last_words, load_cases
from metamorph_jax.report.shapes_scoring import judge, picture_scores, score_crop, words_scores

PICTURE_KINDS = ("text_to_image", "pure_video", "visual_thinking", "image_to_image")


@pytest.fixture(scope="module")
def cases():
    return {kind: load_cases(kind, "heldout", 40) for kind in KINDS}


def test_last_words():
    assert last_words("Let me look: <image> It is red.") == "It is red."
    assert last_words("It is red.") == "It is red."
    assert last_words("Here it is: <image>") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_is_right_and_nothing_is_wrong(cases, kind):
    for case in cases[kind]:
        assert len(case.prompt.images) == case.prompt.text.count("<image>")
        right = judge(case, case.answer, case.pictures)
        assert right.is_said_right and all(score.all for score in right.scores)
        silent = judge(case, "what", [])
        assert not silent.is_said_right and not any(score.all for score in silent.scores)
        assert len(silent.scores) == len(case.pictures)


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_picture_scores_and_their_controls(cases, kind):
    outcomes = [judge(case, "", case.pictures) for case in cases[kind] if case.pictures]
    found = picture_scores(outcomes, lambda pictures: pictures)
    assert set(found["pictures"].values()) == {1.0} == set(found["ceiling"].values())
    assert found["right_number_of_pictures"] == 1.0
    assert found["shuffled"]["all"] < 0.3
    assert ("copied" in found) == (kind != "text_to_image")
    if kind == "image_to_image":
        assert found["copied"]["all"] == 0 and found["copied"]["color"] > 0.5


@pytest.mark.parametrize("kind", ["image_qa", "video_qa", "visual_thinking"])
def test_the_commonest_answer_is_a_control_that_is_often_wrong(cases, kind):
    outcomes = [judge(case, case.answer, case.pictures) for case in cases[kind]]
    found = words_scores(outcomes, commonest_answers(kind))
    assert found["accuracy"] == 1.0 and set(found["accuracy_by_task"].values()) == {1.0}
    assert 0.1 < found["commonest_answer"] < 0.7


def test_half_right_is_half(cases):
    outcomes = [
        judge(case, case.answer if number % 2 else "no idea", [])
        for number, case in enumerate(cases["image_qa"])
    ]
    assert words_scores(outcomes, {})["accuracy"] == 0.5


def test_a_crop_is_judged_by_what_fills_it(cases):
    case = cases["visual_thinking"][0]
    (wanted,) = case.wanted[0]
    assert score_crop(case.pictures[0], wanted).all
    other = dataclasses.replace(wanted, color="green" if wanted.color != "green" else "red")
    score = score_crop(case.pictures[0], other)
    assert not score.all and score.shape == 1 and score.color == 0
    assert not score_crop(np.full((32, 32, 3), 240, np.uint8), Wanted("circle", "red")).all


def test_pixels_come_from_the_cells_of_the_tokens():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    cells = picture.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(1, 4, 48)
    head = {"kernel": np.eye(48, dtype=np.float32) / 127.5, "bias": np.full(48, -1.0)}
    painter = PixelPainter({"contrastive": {"pixel_head": head}})
    np.testing.assert_array_equal(painter.paint(cells.astype(np.float32))[0], picture)


def test_a_model_without_a_head_cannot_paint():
    with pytest.raises(UserError, match="contrastive_dim"):
        PixelPainter({"connector": {}})
