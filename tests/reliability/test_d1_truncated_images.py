"""D1: images that end early are refused, and nothing ever switches Pillow to filling them up."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

import metamorph_jax
from tests.reliability.image_cases import encoded, load, refusal

FORMATS = ["JPEG", "PNG", "WEBP"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_d1_truncated_images(format_, percent, tmp_path):
    data = encoded(format_, (64, 48))
    kept = data[: len(data) * percent // 100]
    (tmp_path / "cut.img").write_bytes(kept)
    error = refusal(tmp_path, "cut.img")
    assert error.reason == "unreadable_media"
    assert len(error.sha256) == 64


@pytest.mark.parametrize("format_", [*FORMATS, "GIF", "BMP"])
def test_d1_last_byte_missing(format_, tmp_path):
    """Either all pixels are there without it, or the file is refused; nothing is made up."""
    data = encoded(format_, (64, 48))
    (tmp_path / "whole.img").write_bytes(data)
    (tmp_path / "cut.img").write_bytes(data[:-1])
    if format_ in ("PNG", "GIF"):  # the byte is part of a closing mark behind the last pixel
        whole = load(tmp_path, "whole.img", 64)
        np.testing.assert_array_equal(load(tmp_path, "cut.img", 64), whole)
    else:
        assert refusal(tmp_path, "cut.img").reason == "unreadable_media"


def test_d1_truncated_progressive_jpeg(tmp_path):
    """Early scans hold a whole, coarse picture, which is not the one that was meant."""
    data = encoded("JPEG", (64, 48), progressive=True)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert refusal(tmp_path, "cut.jpg").reason == "unreadable_media"


def test_d1_truncated_images_are_never_allowed():
    package = Path(metamorph_jax.__file__).parent
    setting = re.compile(r"LOAD_TRUNCATED_IMAGES\s*=|setattr\([^)]*LOAD_TRUNCATED_IMAGES")
    assert [path for path in package.rglob("*.py") if setting.search(path.read_text())] == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
