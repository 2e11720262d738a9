"""Wordings, and relations by centres."""

import pytest

from metamorph_jax.data.shapes import questions as texts
from metamorph_jax.data.shapes.scene import Draws, Item, Scene

CIRCLE = Item("circle", "red", "small", 8, 16)
SQUARE = Item("square", "blue", "large", 24, 17)
PAIR = Scene((CIRCLE, SQUARE))


def test_captions():
    both, one = (True, True), (True, False)
    assert (
        texts.relation_caption(PAIR, "left of", one) == "a small red circle left of a blue square"
    )
    expected = "a small red circle at the left and a large blue square at the right"
    assert texts.places_caption(PAIR, both) == expected
    assert texts.count_caption(Scene((CIRCLE, CIRCLE, CIRCLE))) == "three small red circles"
    cross = Item("cross", "green", "large", 8, 8)
    assert texts.count_caption(Scene((cross, cross))) == "two large green crosses"
    assert texts.count_caption(Scene((cross,))) == "one large green cross"


@pytest.mark.parametrize(
    "relation,expected", [("left of", True), ("right of", False), ("above", False)]
)
def test_relations_go_by_centres_with_a_margin(relation, expected):
    assert texts.holds(CIRCLE, relation, SQUARE) is expected


def test_only_what_is_unique_is_asked_about():
    twice = Scene((CIRCLE, Item("circle", "blue", "small", 24, 16)))
    assert texts.questions(twice, "color") == []
    assert [q.answer for q in texts.questions(twice, "shape")] == ["It is a circle."] * 2


def test_counts():
    answers = {q.text: q.answer for q in texts.questions(PAIR, "count")}
    assert answers["How many objects are there?"] == "There are two."
    assert answers["How many red objects are there?"] == "There is one."
    assert answers["How many crosses are there?"] == "There are zero."


@pytest.mark.parametrize("kind", texts.EDIT_KINDS)
def test_edits_differ_from_the_scene(kind):
    scene = Scene((CIRCLE,)) if kind == "place" else PAIR
    for number in range(20):
        edit = texts.draw_edit(Draws(f"{kind}/{number}"), scene, kind)
        assert edit.result.description != scene.description or kind == "size"
        assert edit.text.endswith(".")
