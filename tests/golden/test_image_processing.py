"""LLaVA's golden set: pixels that the processors of CLIP and SigLIP feed their towers."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from metamorph_jax.data.anyres import select_resolution
from metamorph_jax.data.geometry import fit_image, pad_color
from metamorph_jax.data.images import ImageLoader
from tests.data_files import anyres_views
from tests.golden_data import GOLDEN
from tests.tolerances import GOLDEN_PIXEL_STATISTICS, GOLDEN_PIXELS

pytestmark = pytest.mark.golden
FOLDER = GOLDEN.parent / "llava" / "images"
INDEX = json.loads((FOLDER / "index.json").read_text("utf-8"))
ENTRIES = [entry for entry in INDEX["entries"] if "array" in entry]
EXPECTED = np.load(FOLDER / "expected_uint8.npz", allow_pickle=False)
FLOATS = np.load(FOLDER / "float32_sample.npz", allow_pickle=False)
PINPOINTS = [tuple(size) for size in INDEX["anyres_pinpoints"]]


def pixels_of(entry):
    """Returns what the tower gets, views first for anyres, channels last."""
    processor, mode = entry["processor"], entry["mode"]
    color = pad_color(INDEX[processor]["mean"])
    size = INDEX["side"]
    image = Image.open(FOLDER / entry["image"]).convert("RGB")
    if mode == "anyres":
        return anyres_views(image, select_resolution(image.size, PINPOINTS), size, processor)
    if mode == "cambrian_pad":  # resized to the tower's size before its processor
        square = Image.fromarray(fit_image(image, size, "pad", processor, color))
        return fit_image(square, size, "square", processor)
    loader = ImageLoader(str(FOLDER), size, mode, color, processor)
    return loader.load(entry["image"], "index.json:1")


def normalized(pixels, processor):
    values = np.moveaxis(pixels, -1, -3) / 255
    mean, std = (np.reshape(INDEX[processor][name], (3, 1, 1)) for name in ("mean", "std"))
    return (values - mean) / std


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["array"])
def test_pixels(entry):
    ours = pixels_of(entry)
    name = entry["array"].replace("/", "__")
    np.testing.assert_array_equal(np.moveaxis(ours, -1, -3), EXPECTED[name])
    assert list(EXPECTED[name].shape) == entry["shape"]
    floats = normalized(ours, entry["processor"])
    for statistic in ("mean", "std", "min", "max"):
        theirs = entry[f"float_{statistic}"]
        assert getattr(floats, statistic)() == pytest.approx(theirs, abs=GOLDEN_PIXEL_STATISTICS)
    if name in FLOATS:
        np.testing.assert_allclose(floats, FLOATS[name], rtol=0, atol=GOLDEN_PIXELS)


def test_every_array_is_compared():
    assert {entry["array"].replace("/", "__") for entry in ENTRIES} == set(EXPECTED.files)
    assert set(FLOATS.files) <= set(EXPECTED.files)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if "best_resolution_wh" in e], ids=lambda entry: entry["array"]
)
def test_resolution(entry):
    chosen = select_resolution(tuple(entry["size_wh"]), PINPOINTS)
    assert list(chosen) == entry["best_resolution_wh"]


@pytest.mark.parametrize("processor", sorted(INDEX["pad_colour"]))
def test_pad_color(processor):
    assert list(pad_color(INDEX[processor]["mean"])) == INDEX["pad_colour"][processor]


@pytest.mark.parametrize(
    "entry", [e for e in INDEX["entries"] if "check" in e], ids=lambda entry: entry["image"]
)
def test_other_siglip_processor(entry):
    """The set holds NeXT's; that of Hugging Face is as far from ours as the set says."""
    assert entry["check"] == "hf_siglip_vs_next_siglip_max_abs_diff"
    size = INDEX["side"]
    processor = SiglipImageProcessorPil(
        size={"height": size, "width": size}, do_rescale=False, do_normalize=False
    )
    image = Image.open(FOLDER / entry["image"]).convert("RGB")
    theirs = processor(image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    assert np.abs(fit_image(image, size) - theirs.astype(np.float64)).max() <= entry["value"]
