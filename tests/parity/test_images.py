"""Pixels that reach the tower equal those of Hugging Face's SigLIP processor, bit for bit."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from metamorph_jax.data.images import ImageLoader

SIZES = [(384, 384), (640, 480), (97, 301), (20, 33), (1, 50), (800, 13)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("target", [384, 32])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_square_geometry(size, target, mode, tmp_path):
    random = np.random.default_rng(sum(size))
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    image = Image.fromarray(random.integers(0, 256, shape, np.uint8))
    image.save(tmp_path / "image.png")
    processor = SiglipImageProcessorPil(
        size={"height": target, "width": target}, do_rescale=False, do_normalize=False
    )
    expected = processor(image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    ours = ImageLoader(str(tmp_path), target).load("image.png", "f:1")
    np.testing.assert_array_equal(ours, expected.astype(np.uint8))
    assert np.array_equal(expected, expected.round())
