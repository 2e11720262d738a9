"""From a tokens file to PNG files."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import painter
from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.painter import paint, paint_file
from tests.visualizer_files import MODEL, write_data

TOKENS = torch.randn((5, 4, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Visualizer(MODEL).eval()


@pytest.fixture
def run(model, tmp_path):
    save_checkpoint(tmp_path / "run", model, TrainingState(1, {}, {}, ""), keep=2)
    return tmp_path / "run"


def test_pictures_are_what_paint_returns(model, run, tmp_path):
    write_data(tmp_path)
    tokens = tmp_path / "visual_tokens.safetensors"
    files = paint_file(run, tokens, tmp_path / "out", guidance=2.0, num_steps=3, seed=5)
    assert [file.name for file in files] == [f"image_0000{index}.png" for index in range(3)]
    values = load_file(tokens)["visual_tokens"]
    expected = paint(model, values, guidance=2.0, num_steps=3, seed=5)
    for index, file in enumerate(files):
        with Image.open(file) as picture:
            assert picture.text == {"guidance": "2.0", "steps": "3", "seed": str(5 + index)}
            np.testing.assert_array_equal(np.asarray(picture), expected[index])
    with Image.open(tmp_path / "out/contact_sheet.png") as sheet:
        assert sheet.size == (3 * 66 + 2, 66 + 2)


def test_batches_do_not_change_pictures(model, monkeypatch):
    together = paint(model, TOKENS, num_steps=2)
    monkeypatch.setattr(painter, "BATCH_SIZE", 2)
    apart = paint(model, TOKENS, num_steps=2)
    # Sums in another order may tip a rounding to the next of 255 levels.
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1


def test_seed_and_tokens_decide_the_picture(model):
    first = paint(model, TOKENS[:1], num_steps=2, seed=1)
    np.testing.assert_array_equal(paint(model, TOKENS[:1], num_steps=2, seed=1), first)
    assert (paint(model, TOKENS[:1], num_steps=2, seed=2) != first).any()
    assert (paint(model, TOKENS[1:2], num_steps=2, seed=1) != first).any()


def test_painting_leaves_the_global_random_state_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    paint(model, TOKENS[:1], num_steps=2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_steps": 0}, "steps=0: from 1 to 1000"),
        ({"num_steps": 1001}, "steps=1001"),
        ({"guidance": -1.0}, "guidance=-1.0"),
    ],
)
def test_settings_out_of_range_are_told(model, settings, told):
    with pytest.raises(UserError, match=told):
        paint(model, TOKENS, **settings)


def test_tokens_of_another_encoder_are_told(run, tmp_path):
    tokens = tmp_path / "visual_tokens.safetensors"
    save_file({"visual_tokens": torch.zeros(2, 16, 6)}, tokens)
    with pytest.raises(UserError) as error:
        paint_file(run, tokens, tmp_path / "out")
    assert str(tokens) in str(error.value)
    assert "16 visual tokens of width 6" in str(error.value)
    assert "num_tokens=4, token_dim=6" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("theirs", "is_fine"), [("abc", True), (None, True), ("xyz", False)])
def test_encoder_is_compared_where_known(model, tmp_path, theirs, is_fine):
    model.encoder_fingerprint = "abc"
    save_checkpoint(tmp_path / "run", model, TrainingState(1, {}, {}, ""), keep=2)
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "out"
    metadata = {"encoder_fingerprint": theirs} if theirs else None
    save_file({"visual_tokens": TOKENS}, tokens, metadata)
    if is_fine:
        assert len(paint_file(tmp_path / "run", tokens, out, num_steps=1)) == 5
    else:
        with pytest.raises(UserError, match=r"another encoder \(xyz\).*trained on \(abc\)"):
            paint_file(tmp_path / "run", tokens, out, num_steps=1)


def test_out_that_is_a_file_is_told(run, tmp_path):
    write_data(tmp_path)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="out: pictures could not be written"):
        paint_file(run, tmp_path / "visual_tokens.safetensors", tmp_path / "out", num_steps=1)
