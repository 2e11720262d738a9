"""The oracle reads what the world draws, and says less of it as the picture gets worse."""

import numpy as np
import pytest

from metamorph_jax.data.shapes.draw import draw_pixels
from metamorph_jax.data.shapes.oracle import Wanted, read_picture, score_picture
from metamorph_jax.data.shapes.scene import (
    COLORS,
    LAYOUTS,
    PLACES,
    SHAPES,
    SIZES,
    Draws,
    Item,
    Scene,
    draw_scene,
)


def scenes(count: int) -> list[Scene]:
    found = []
    for number in range(count):
        draws = Draws(f"oracle/{number}")
        found.append(draw_scene(draws, draws.one_of(LAYOUTS[1 + draws.below(3)])))
    return found


def wanted(scene: Scene) -> list[Wanted]:
    return [Wanted(item.shape, item.color, item.size, (item.x, item.y)) for item in scene.items]


def test_clean_scenes_are_read_without_error():
    for scene in scenes(2000):
        seen = read_picture(draw_pixels(scene))
        assert [thing.item for thing in seen] == sorted(scene.items, key=lambda i: (i.y, i.x))
        assert all(thing.fit == 1 for thing in seen)


def test_every_shape_in_every_colour_and_size_at_every_place():
    for place, (x, y) in PLACES.items():
        for number, (shape, color) in enumerate((s, c) for s in SHAPES for c in COLORS):
            item = Item(shape, color, list(SIZES)[number % 2], x, y)
            (seen,) = read_picture(draw_pixels(Scene((item,))))
            assert seen.item == item
            assert seen.item.place == place


def blurred(picture: np.ndarray, width: float) -> np.ndarray:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(picture.astype(float), (width, width, 0))
    return smooth.round().astype(np.uint8)


@pytest.mark.parametrize("spread,least,most", [(20, 0.99, 1), (60, 0.85, 1), (150, 0, 0.2)])
def test_noise_costs_little_at_first_and_everything_at_last(spread, least, most):
    random = np.random.default_rng(0)
    right = []
    for scene in scenes(100):
        noise = random.normal(0, spread, (32, 32, 3))
        picture = np.clip(draw_pixels(scene) + noise, 0, 255).astype(np.uint8)
        right.append(score_picture(picture, wanted(scene)).all)
    assert least <= np.mean(right) <= most


def test_a_blurred_picture_keeps_number_colour_and_place():
    scores = [score_picture(blurred(draw_pixels(s), 1.0), wanted(s)) for s in scenes(100)]
    assert np.mean([score.count for score in scores]) > 0.95
    assert np.mean([score.color for score in scores]) > 0.97
    assert np.mean([score.place for score in scores]) > 0.97
    assert 0.6 < np.mean([score.shape for score in scores])


def test_each_part_of_the_score_sees_its_own_fault():
    scene = Scene((Item("circle", "red", "small", 8, 16), Item("square", "blue", "large", 24, 16)))
    relation = [(0, "left of", 1)]

    def score(changed: Scene):
        return score_picture(draw_pixels(changed), wanted(scene), relation)

    assert score(scene).all
    faults = {
        "shape": score(scene.replaced(0, shape="cross")),
        "color": score(scene.replaced(0, color="green")),
        "size": score(scene.replaced(0, size="large")),
        "place": score(scene.replaced(0, y=4)),
    }
    for name, found in faults.items():
        values = {part: getattr(found, part) for part in faults}
        assert values == dict.fromkeys(faults, 1.0) | {name: 0.5}
        assert found.count and found.relation and not found.all
    swapped = score(scene.replaced(0, x=24).replaced(1, x=8))
    assert not swapped.relation and swapped.place == 0 and swapped.shape == 1
    lost = score(scene.without(1))
    assert not lost.count and not lost.relation and lost.shape == 0.5


def test_what_a_request_leaves_open_may_be_anything():
    picture = draw_pixels(Scene((Item("cross", "purple", "large", 8, 8),)))
    assert score_picture(picture, [Wanted("cross", "purple")]).all
    assert not score_picture(picture, [Wanted("cross", "purple", "small")]).all


def test_an_empty_picture_has_nothing():
    empty = draw_pixels(Scene(()))
    assert read_picture(empty) == []
    score = score_picture(empty, [Wanted("circle")])
    assert not score.count and score.shape == 0
    assert score_picture(empty, []).all


def test_a_crowd_of_specks_is_neither_slow_nor_an_error():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert not score_picture(picture, [Wanted("circle", "red")] * 3).all
