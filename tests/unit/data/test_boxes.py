import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.boxes import COLOR, LINE_WIDTH, crop, draw_boxes
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import NamedBox

NAME = "f:1: image 'a.png'"


def canvas(width=100, height=80):
    return Image.new("RGB", (width, height), "white")


def red(image):
    return (np.asarray(image) == COLOR).all(-1)


def test_crop_is_the_box_in_whole_pixels():
    values = np.arange(80 * 100, dtype=np.uint8).reshape(80, 100)
    image = Image.fromarray(values).convert("RGB")
    part = np.asarray(crop(image, (9.6, 20.4, 30.2, 40), NAME))[..., 0]
    np.testing.assert_array_equal(part, values[20:40, 10:30])


def test_what_overhangs_is_left_out():
    assert crop(canvas(), (-5, -5, 10, 10), NAME).size == (10, 10)
    assert crop(canvas(), (90, 70, 1e9, 1e9), NAME).size == (10, 10)


@pytest.mark.parametrize(
    "box",
    [
        (100, 0, 120, 10),  # right of the image
        (0, 80, 10, 90),  # below
        (-20, 0, 0, 10),
        (10, 10, 10, 20),  # empty
        (20, 10, 10, 20),  # the wrong way round
        (10.2, 10, 10.4, 20),  # less than a pixel
        (float("nan"), 0, 10, 10),
        (0, 0, float("inf"), 10),
    ],
)
def test_boxes_without_pixels(box):
    for act in (
        lambda: crop(canvas(), box, NAME),
        lambda: draw_boxes(canvas(), [NamedBox(box)], NAME),
    ):
        with pytest.raises(BadSample) as caught:
            act()
        assert caught.value.reason == "malformed_record"
        assert str(caught.value).startswith(NAME)
        assert "left < right" in str(caught.value)


def test_rectangle_of_five_pixels_on_a_copy():
    image = canvas()
    found = red(draw_boxes(image, [NamedBox((20, 30, 70, 60))], NAME))
    assert LINE_WIDTH == 5
    expected = np.zeros((80, 100), np.bool_)
    expected[30:60, 20:70] = True
    expected[35:55, 25:65] = False
    np.testing.assert_array_equal(found, expected)
    assert not red(image).any()


@pytest.mark.parametrize(("top", "rows"), [(40, slice(20, 40)), (0, slice(5, 25))])
def test_name_above_its_rectangle_or_in_it(top, rows):
    box = (10, top, 90, top + 38)
    plain = red(draw_boxes(canvas(), [NamedBox(box)], NAME))
    named = np.asarray(draw_boxes(canvas(), [NamedBox(box, "cup")], NAME))
    text = (named != 255).any(-1) & ~plain
    assert text[rows].any()
    text[rows] = False
    assert not text.any()


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 100_000, "杯子 <image>", "\0\ud800"])
def test_any_name_can_be_drawn(name):
    assert red(draw_boxes(canvas(), [NamedBox((10, 20, 90, 70), name)], NAME)).any()


def test_box_smaller_than_its_line():
    found = red(draw_boxes(canvas(), [NamedBox((10, 10, 12, 13))], NAME))
    assert found[10:13, 10:12].all()
    found[10 - LINE_WIDTH : 13 + LINE_WIDTH, 10 - LINE_WIDTH : 12 + LINE_WIDTH] = False
    assert not found.any()  # the line may leave the box, but by no more than its width
