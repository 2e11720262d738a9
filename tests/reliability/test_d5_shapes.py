"""D5: images of the most extreme shapes are fine, or refused from their headers."""

import pytest
from PIL import Image

from tests.reliability import image_cases as cases
from tests.reliability.image_cases import load, refusal

COLOR = (200, 10, 30)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 65_000), (9_000, 7)])
@pytest.mark.parametrize(
    ("geometry", "processor"), [("square", "siglip"), ("square", "clip"), ("pad", "clip")]
)
def test_d5_shapes(size, geometry, processor, tmp_path):
    Image.new("RGB", size, COLOR).save(tmp_path / "a.png")
    options = {"geometry": geometry, "processor": processor, "pad_color": COLOR}
    pixels = load(tmp_path, "a.png", 56, **options)
    assert pixels.shape == (56, 56, 3)
    assert (pixels == COLOR).all()


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
@pytest.mark.parametrize("make", [cases.png, cases.bmp, cases.jpeg_of_size, cases.gif])
def test_d5_no_pixels(size, make, tmp_path):
    data = make(*size, 1, size) if make is cases.gif else make(*size)
    (tmp_path / "a.img").write_bytes(data)
    assert refusal(tmp_path, "a.img").reason == "unreadable_media"


def test_d5_promised_pixels_that_are_not_there(tmp_path):
    (tmp_path / "a.png").write_bytes(cases.png(2_000, 2_000))
    assert refusal(tmp_path, "a.png").reason == "unreadable_media"
