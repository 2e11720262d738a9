"""Pixels that reach the tower equal those of Hugging Face's processors, bit for bit.

Reference: `SiglipImageProcessorPil`, `CLIPImageProcessorPil` and `LlavaNextImageProcessorPil` of
transformers 5.23. (The processors without "Pil" resize with torchvision, which is off by a level
here and there from what the published towers were trained with.)
"""

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from metamorph_jax.data import geometry
from metamorph_jax.data.anyres import select_resolution
from metamorph_jax.data.geometry import fit_image
from metamorph_jax.data.images import ImageLoader
from tests.data_files import anyres_views
from tests.tolerances import PIXEL_LEVELS

SIZES = [(384, 384), (640, 480), (97, 301), (20, 33), (1, 50), (800, 13), (337, 336), (335, 501)]
RAW = {"do_rescale": False, "do_normalize": False}


def random_image(size, mode="RGB"):
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, shape, np.uint8))


def theirs(processor, image):
    pixels = processor(image, return_tensors="np").pixel_values[0]
    assert np.array_equal(pixels, pixels.round())
    return np.moveaxis(pixels, -3, -1).astype(np.uint8)


def named(size):
    return f"{size[0]}x{size[1]}"


def hf_processor(family, target):
    if family == "siglip":
        return SiglipImageProcessorPil(size={"height": target, "width": target}, **RAW)
    size, crop = {"shortest_edge": target}, {"height": target, "width": target}
    return CLIPImageProcessorPil(size=size, crop_size=crop, **RAW)


@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("target", [336, 31])
@pytest.mark.parametrize("family", ["siglip", "clip"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_square_geometry(size, target, family, mode, tmp_path):
    image = random_image(size, mode)
    image.save(tmp_path / "image.png")
    ours = ImageLoader(str(tmp_path), target, processor=family).load("image.png", "f:1")
    np.testing.assert_array_equal(ours, theirs(hf_processor(family, target), image.convert("RGB")))


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_square_geometry_of_many_odd_sizes(family):
    random = np.random.default_rng(7)
    processor = hf_processor(family, 23)
    for size in random.integers(1, 130, (200, 2)).tolist():
        image = random_image(size)
        ours = fit_image(image, 23, "square", family)
        np.testing.assert_array_equal(ours, theirs(processor, image), err_msg=str(size))


@pytest.mark.parametrize(
    "size", [(9, 700), (700, 9), (37, 301), (500, 3), (20000, 3), (3, 20000), (90, 900)], ids=named
)
def test_clip_of_thin_images_that_are_computed_in_part(size, monkeypatch):
    monkeypatch.setattr(geometry, "_MAX_RESIZED_PIXELS", 0)
    image = random_image(size)
    ours = fit_image(image, 56, "square", "clip").astype(int)
    off = np.abs(ours - theirs(hf_processor("clip", 56), image))
    assert off.max() <= PIXEL_LEVELS
    assert (off > 0).mean() < 0.05


@pytest.mark.parametrize("size", [(97, 301), (301, 97), (56, 57), (160, 20), (9, 2)], ids=named)
def test_anyres_views(size):
    pinpoints = [(56, 112), (112, 56), (112, 112), (168, 56), (56, 168)]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
        **RAW,
    )
    image = random_image(size)
    ours = anyres_views(image, select_resolution(size, pinpoints), 56, "clip")
    np.testing.assert_array_equal(ours, theirs(processor, image))
