"""Pictures from the visualizer's own process, in order, or one clear message."""

import numpy as np
import pytest
import torch
from PIL import Image

from metamorph_jax.errors import UserError
from metamorph_jax.report.painting import Painting
from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.painter import Painter
from tests.visualizer_files import MODEL

TOKENS = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)


@pytest.fixture
def visualizer(tmp_path):
    torch.manual_seed(0)
    model = Visualizer(MODEL).eval()
    model.encoder_fingerprint = "mine"
    save_checkpoint(tmp_path / "visualizer", model, TrainingState(1, {}, {}, ""), keep=2)
    return model


def test_pictures_come_back_in_order(visualizer, tmp_path):
    painting = Painting(tmp_path / "visualizer", TOKENS, tmp_path / "out", "mine")
    pictures = painting.finish()
    expected = Painter(visualizer).paint(torch.from_numpy(TOKENS), 1.0, range(3)).pictures
    np.testing.assert_array_equal(np.stack(pictures), expected)


def test_every_file_is_listed(visualizer, tmp_path):
    origin = {"prompt": "three of them"}
    painting = Painting(tmp_path / "visualizer", TOKENS, tmp_path / "out", "mine", origin)
    files = painting.finish_files()
    assert files == [tmp_path / f"out/image_0000{index}.png" for index in range(3)]
    assert Image.open(files[0]).text["prompt"] == "three of them"


def test_failure_says_what_the_visualizer_said(visualizer, tmp_path):
    with pytest.raises(UserError, match=r"could not paint.*\n.*another encoder"):
        Painting(tmp_path / "visualizer", TOKENS, tmp_path / "out", "other").finish()


def test_cancelled_painting_ends(visualizer, tmp_path):
    painting = Painting(tmp_path / "visualizer", TOKENS, tmp_path / "out", "mine")
    painting.cancel()
    assert painting._process.poll() is not None
