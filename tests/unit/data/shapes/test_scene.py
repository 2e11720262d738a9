"""Scenes: a function of the key, never overlapping, fairly drawn."""

import collections
import itertools

import numpy as np

from metamorph_jax.data.shapes.draw import draw_pixels, scene_png
from metamorph_jax.data.shapes.scene import (
    BACKGROUND,
    COLORS,
    COUNT_LAYOUTS,
    IMAGE_SIZE,
    LAYOUTS,
    PLACES,
    SHAPES,
    SIZES,
    Draws,
    Item,
    Movement,
    Scene,
    draw_equal_items,
    draw_scene,
    split_of,
)


def test_draws_depend_on_the_key_alone_and_never_end():
    first, second = Draws("a"), Draws("a")
    assert [first.below(1000) for _ in range(200)] == [second.below(1000) for _ in range(200)]
    assert [Draws("b").below(1000) for _ in range(5)] != [Draws("a").below(1000) for _ in range(5)]
    assert sorted(Draws("c").shuffled(range(20))) == list(range(20))


def test_shapes_do_not_touch_and_stay_inside():
    for number in range(300):
        draws = Draws(f"touch/{number}")
        scene = draw_scene(draws, draws.one_of(LAYOUTS[1 + number % 3]))
        for item in scene.items:
            left, top, right, bottom = item.box
            assert 0 <= left and 0 <= top and right <= IMAGE_SIZE and bottom <= IMAGE_SIZE
        for a, b in itertools.combinations(scene.items, 2):
            gaps = (b.box[0] - a.box[2], a.box[0] - b.box[2])
            gaps += (b.box[1] - a.box[3], a.box[1] - b.box[3])
            assert max(gaps) >= 1


def test_pixels_have_only_the_colours_of_the_world():
    scene = draw_scene(Draws("colours"), LAYOUTS[3][0])
    found = {tuple(pixel) for pixel in draw_pixels(scene).reshape(-1, 3).tolist()}
    assert found == {BACKGROUND, *(COLORS[item.color] for item in scene.items)}


def test_the_same_key_gives_the_same_bytes():
    one, two = (scene_png(draw_scene(Draws("bytes"), LAYOUTS[2][3])) for _ in range(2))
    assert one == two and one.startswith(b"\x89PNG")


def test_every_value_is_drawn_about_equally_often():
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for number in range(2000):
        draws = Draws(f"fair/{number}")
        (item,) = draw_scene(draws, draws.one_of(LAYOUTS[1])).items
        for name in ("shape", "color", "size", "place"):
            counts[name][getattr(item, name)] += 1
    for name, values in (("shape", SHAPES), ("color", COLORS), ("size", SIZES), ("place", PLACES)):
        shares = np.array([counts[name][value] for value in values]) / 2000 * len(values)
        assert shares.min() > 0.8 and shares.max() < 1.25


def test_equal_items_differ_only_in_place():
    scene = draw_equal_items(Draws("equal"), 3)
    assert len({item.full_name for item in scene.items}) == 1
    assert tuple(item.place for item in scene.items) == COUNT_LAYOUTS[3]


def test_a_movement_is_steady_and_leaves_the_others_alone():
    scene = Scene((Item("circle", "red", "small", 9, 8), Item("square", "blue", "large", 16, 24)))
    frames = Movement(scene, 0, "to the right").frames()
    assert [frame.items[0].x for frame in frames] == list(range(9, 25, 2))
    assert {frame.items[1] for frame in frames} == {scene.items[1]}


def test_descriptions_leave_out_size_and_order():
    a, b = Item("circle", "red", "small", 8, 8), Item("square", "blue", "large", 24, 24)
    other = Scene((Item("square", "blue", "small", 24, 24), Item("circle", "red", "large", 8, 8)))
    assert Scene((a, b)).description == other.description
    assert "red circle at the top left" in other.description


def test_a_tenth_is_held_out_and_a_tenth_for_validation():
    counts = collections.Counter(split_of(f"description {number}") for number in range(5000))
    assert all(0.08 < counts[split] / 5000 < 0.12 for split in ("validation", "heldout"))
