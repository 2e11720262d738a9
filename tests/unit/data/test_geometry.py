import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data import geometry
from metamorph_jax.data.geometry import GREY, fit_image, pad_color, pad_to_square
from tests.data_files import anyres_views

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(8, 4), (4, 8)])
@pytest.mark.parametrize("processor", ["siglip", "clip"])
def test_pad_centres_on_the_colour(width, height, processor):
    pixels = fit_image(Image.new("RGB", (width, height), WHITE), 8, "pad", processor)
    if width < height:
        pixels = pixels.transpose(1, 0, 2)
    assert (pixels[:2] == GREY).all() and (pixels[6:] == GREY).all()
    assert (pixels[2:6] == WHITE).all()


def test_the_smaller_half_of_an_odd_border_comes_first():
    square = np.asarray(pad_to_square(Image.new("RGB", (4, 1), WHITE), BLACK))
    assert square[:, 0, 0].tolist() == [0, 255, 0, 0]


def test_padding_has_the_mean_colour_of_the_tower():
    assert pad_color((0.5, 0.5, 0.5)) == GREY == (127, 127, 127)
    assert pad_color((0.48145466, 0.4578275, 0.40821073)) == (122, 116, 104)


def test_a_long_image_is_shrunk_before_it_is_padded(monkeypatch):
    """The same picture as without, as far as levels go."""
    random = np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)
    smooth = Image.fromarray(random).resize((1200, 160), Image.Resampling.BICUBIC)
    whole = fit_image(smooth, 30, "pad").astype(int)
    monkeypatch.setattr(geometry, "_MAX_PADDED_SIDE", 600)
    assert np.abs(fit_image(smooth, 30, "pad") - whole).max() <= 3


def test_siglip_squashes():
    image = Image.new("RGB", (8, 4), WHITE)
    image.paste(BLACK, (0, 0, 4, 4))
    pixels = fit_image(image, 4)
    assert pixels[:, 0].max() < 10 and pixels[:, 3].min() > 245


def test_clip_cuts_the_middle_out():
    image = Image.new("RGB", (12, 4), WHITE)
    image.paste(BLACK, (4, 0, 8, 4))
    assert (fit_image(image, 4, "square", "clip") == 0).all()


def test_anyres_views_are_the_whole_and_then_tiles_in_reading_order():
    """Four quarters of four levels, on a canvas of twice the size."""
    levels = np.kron(np.array([[10, 60], [120, 200]], np.uint8), np.ones((4, 4), np.uint8))
    views = anyres_views(Image.fromarray(levels).convert("RGB"), (16, 16), 8)
    assert views.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(views[0, ..., 0], levels)
    assert [int(view[3, 3, 0]) for view in views[1:]] == [10, 60, 120, 200]


def test_anyres_borders_are_black():
    views = anyres_views(Image.new("RGB", (8, 4), WHITE), (8, 8), 8)
    np.testing.assert_array_equal(views[0], np.full((8, 8, 3), 255))
    rows = views[1, :, 0, 0]
    assert rows.tolist() == [0, 0, 255, 255, 255, 255, 0, 0]


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_anyres_of_a_line(size):
    assert anyres_views(Image.new("RGB", size, WHITE), (16, 32), 8).shape == (9, 8, 8, 3)
