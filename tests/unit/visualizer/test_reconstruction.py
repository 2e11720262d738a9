"""The reconstruction sheet: what it measures, what it shows, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.painter import Painter
from metamorph_jax.visualizer.reconstruction import (
    cosine,
    read_predictions,
    read_square,
    reconstruct,
    show_in_tensorboard,
)
from metamorph_jax.visualizer.settings import PaintSettings
from tests.visualizer_files import MODEL, write_data

NAMES = ["0.png", "1.png", "2.png"]


def write_predictions(folder, **changes):
    """Writes predictions for three pictures: the first right, the second opposite, no third."""
    encoded = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))
    predicted = torch.stack([2 * encoded[0], -encoded[1], torch.zeros(4, 6)])
    tensors = {"encoded": encoded, "predicted": predicted}
    tensors |= {"has_picture": torch.tensor([1, 1, 0], dtype=torch.uint8)}
    metadata = {
        "images": json.dumps(NAMES),
        "prompts": json.dumps(["Draw one.", "Draw two.", "Draw three."]),
        "answers": json.dumps(["Here: <image>", "<image>", "No."]),
        "image_root": str(folder / "images"),
        "step": "00000012",
        "checkpoint_fingerprint": "abc",
    }
    save_file(tensors, folder / "predictions.safetensors", metadata | changes)
    return folder / "predictions.safetensors"


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    write_data(tmp_path)
    model = Visualizer(MODEL)
    model.encoder_fingerprint = "mine"
    save_checkpoint(tmp_path / "run", model, TrainingState(1, {}, {}, ""), keep=2)
    return tmp_path / "run"


@pytest.fixture
def painter():
    torch.manual_seed(0)
    return Painter(Visualizer(MODEL), PaintSettings(num_steps=2))


def test_cosine_is_the_mean_over_tokens():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    others = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    assert cosine(tokens, others).tolist() == [0.5]


def test_numbers_and_sheet(painter, run, tmp_path):
    out = tmp_path / "out"
    file, numbers = reconstruct(painter, write_predictions(tmp_path), run, out)
    assert file == out / "step_00000012.png"
    assert json.loads((out / "step_00000012.json").read_text()) == numbers
    assert [entry["cosine"] for entry in numbers["pictures"]] == [1.0, -1.0, None]
    assert numbers["pictures"][2]["answer"] == "No."
    assert (numbers["step"], numbers["num_drawn"], numbers["num_pictures"]) == (12, 2, 3)
    assert numbers["mean_cosine"] == pytest.approx(0, abs=1e-6)
    assert 0.3 < numbers["mean_picture_cosine"] < 0.9
    with Image.open(file) as sheet:
        pixels = np.asarray(sheet)
        assert sheet.text["checkpoint_fingerprint"] == "abc"
        assert "pictures" not in sheet.text
    # Two records a line, so two lines of three tiles each, twice.
    assert pixels.shape == (17 + 2 * (2 + 128 + 17 + 2 + 17), 2 * (3 * 130 + 2 + 12), 3)
    original = np.asarray(Image.open(tmp_path / "images/0.png"))
    np.testing.assert_array_equal(pixels[19 : 19 + 128 : 16, 2 : 2 + 128 : 16], original)
    assert sorted(path.name for path in out.iterdir()) == ["step_00000012.json", file.name]


def test_both_sides_start_from_the_same_noise(painter, run, tmp_path):
    """What is predicted exactly is painted exactly as what is encoded."""
    encoded = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))
    file = write_predictions(tmp_path)
    tensors = {"encoded": encoded, "predicted": encoded.clone()}
    tensors["has_picture"] = torch.ones(3, dtype=torch.uint8)
    metadata = read_predictions(file).metadata
    save_file(tensors, file, metadata)
    sheet, _ = reconstruct(painter, file, run, tmp_path / "out")
    pixels = np.asarray(Image.open(sheet))
    np.testing.assert_array_equal(pixels[19:147, 132:260], pixels[19:147, 262:390])


def test_no_picture_at_all(painter, run, tmp_path):
    file = write_predictions(tmp_path)
    found = read_predictions(file)
    tensors = {"encoded": found.encoded, "predicted": torch.zeros(3, 4, 6)}
    tensors["has_picture"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, file, found.metadata)
    _, numbers = reconstruct(painter, file, run, tmp_path / "out")
    assert (numbers["mean_cosine"], numbers["num_drawn"]) == (None, 0)


def test_originals_are_cut_to_the_square_in_the_middle(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_square(tmp_path / "wide.png", 8, "squash") == 200).all()
    padded = read_square(tmp_path / "wide.png", 8, "pad")
    assert (padded[0] == 127).all() and (padded[3:5, 3:5] >= 200).all()


def test_tensorboard_shows_sheet_and_cosines(painter, run, tmp_path):
    sheet, numbers = reconstruct(painter, write_predictions(tmp_path), run, tmp_path / "out")
    show_in_tensorboard(tmp_path / "tb", sheet, numbers)
    (events,) = (tmp_path / "tb").iterdir()
    content = events.read_bytes()
    assert b"pictures/sheet" in content and b"\x89PNG" in content
    assert b"pictures/cosine_of_mean_picture" in content


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": '["0.png"]'}, r"no predictions \(ValueError: lists of \[1, 3\]"),
        ({"prompts": "["}, "no predictions"),
        ({"images": '["0.png", "9999.png", "2.png"]'}, r"9999.png"),
        ({"encoder_fingerprint": "other"}, "another encoder"),
    ],
)
def test_what_does_not_fit_is_told(run, painter, tmp_path, changes, told):
    painter.visualizer.encoder_fingerprint = "mine"
    with pytest.raises(UserError, match=told):
        reconstruct(painter, write_predictions(tmp_path, **changes), run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_token_file_is_no_predictions_file(run, painter, tmp_path):
    with pytest.raises(UserError, match="no tensor 'encoded'"):
        read_predictions(tmp_path / "visual_tokens.safetensors")
