"""From a tokens file to PNG files that say how they came about."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import PARTS, TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.painter import Painter
from metamorph_jax.visualizer.parts import keep_parts, load_parts
from metamorph_jax.visualizer.picture_files import fingerprint, load_painter, paint_file
from metamorph_jax.visualizer.settings import PaintSettings
from tests.safety_checker import write_safety
from tests.visualizer_files import MODEL, SD_MODEL, write_data, write_stable_diffusion

TOKENS = torch.randn((5, 4, 6), generator=torch.Generator().manual_seed(0))
QUICK = PaintSettings(num_steps=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Visualizer(MODEL).eval()


@pytest.fixture
def run(model, tmp_path):
    save_checkpoint(tmp_path / "run", model, TrainingState(1, {}, {}, ""), keep=2)
    return tmp_path / "run"


def test_pictures_are_what_the_painter_paints(model, run, tmp_path):
    write_data(tmp_path)
    tokens = tmp_path / "visual_tokens.safetensors"
    settings = PaintSettings(guidance=(2.0,), num_steps=3, seeds=(5,))
    files = paint_file(run, tokens, tmp_path / "out", settings)
    assert [file.name for file in files] == [f"image_0000{index}.png" for index in range(3)]
    values = load_file(tokens)["visual_tokens"]
    expected = Painter(model, settings).paint(values, 2.0, [5, 6, 7]).pictures
    for index, file in enumerate(files):
        with Image.open(file) as picture:
            assert picture.text == {
                "guidance": "2.0",
                "steps": "3",
                "scheduler": "DDIMScheduler",
                "dtype": "float32",
                "seed": str(5 + index),
                "visualizer_fingerprint": fingerprint(run),
            }
            np.testing.assert_array_equal(np.asarray(picture), expected[index])
    with Image.open(tmp_path / "out/contact_sheet.png") as sheet:
        assert sheet.size == (3 * 66 + 2, 66 + 2)


def test_every_seed_and_guidance_scale_has_files_of_its_own(run, tmp_path):
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "out"
    metadata = {"prompt": "a căt, 猫", "checkpoint_fingerprint": "abc"}
    save_file({"visual_tokens": TOKENS[:2]}, tokens, metadata)
    settings = PaintSettings(guidance=(1.0, 2.5), seeds=(0, 7), num_steps=1)
    files = paint_file(run, tokens, out, settings)
    assert len(files) == len({file.name for file in files}) == 8
    assert out / "image_00001_seed7_guidance2.5.png" in files
    with Image.open(out / "image_00001_seed7_guidance2.5.png") as picture:
        assert (picture.text["seed"], picture.text["guidance"]) == ("8", "2.5")
        assert picture.text["prompt"] == "a căt, 猫"
        assert picture.text["checkpoint_fingerprint"] == "abc"
    entries = json.loads((out / "pictures.json").read_text())
    assert [out / entry["file"] for entry in entries] == files
    assert entries[-1] == {
        "file": "image_00001_seed7_guidance2.5.png",
        "picture": 1,
        "seed": 8,
        "guidance": 2.5,
        "flagged": False,
    }
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width == 4 * 130 + 2 + 12


def test_fingerprint_changes_with_the_weights(model, run):
    before = fingerprint(run)
    assert fingerprint(run / "checkpoints/00000001") == before
    with torch.no_grad():
        model.positions += 1
    save_checkpoint(run, model, TrainingState(2, {}, {}, ""), keep=2)
    assert fingerprint(run) != before


@pytest.mark.parametrize("shape", [(2, 16, 6), (2, 4, 7)])
def test_tokens_of_another_count_or_width_are_told(run, tmp_path, shape):
    tokens = tmp_path / "visual_tokens.safetensors"
    save_file({"visual_tokens": torch.zeros(shape)}, tokens)
    with pytest.raises(UserError) as error:
        paint_file(run, tokens, tmp_path / "out")
    assert str(tokens) in str(error.value)
    assert f"{shape[1]} visual tokens of width {shape[2]}" in str(error.value)
    assert "num_tokens=4, token_dim=6" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_not_read(run, tmp_path):
    tokens = tmp_path / "tokens.bin"
    torch.save({"visual_tokens": TOKENS}, tokens)
    with pytest.raises(UserError, match=r"tokens.bin: not a whole safetensors.*pickles"):
        paint_file(run, tokens, tmp_path / "out")


@pytest.mark.parametrize(("theirs", "is_fine"), [("abc", True), (None, True), ("xyz", False)])
def test_encoder_is_compared_where_known(model, tmp_path, theirs, is_fine):
    model.encoder_fingerprint = "abc"
    save_checkpoint(tmp_path / "run", model, TrainingState(1, {}, {}, ""), keep=2)
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "out"
    metadata = {"encoder_fingerprint": theirs} if theirs else None
    save_file({"visual_tokens": TOKENS}, tokens, metadata)
    if is_fine:
        assert len(paint_file(tmp_path / "run", tokens, out, QUICK)) == 5
    else:
        with pytest.raises(UserError, match=r"another encoder \(xyz\).*trained on \(abc\)"):
            paint_file(tmp_path / "run", tokens, out, QUICK)


def test_out_that_is_a_file_is_told(run, tmp_path):
    write_data(tmp_path)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="out: pictures could not be written"):
        paint_file(run, tmp_path / "visual_tokens.safetensors", tmp_path / "out", QUICK)


@pytest.fixture
def stable_diffusion(tmp_path):
    """Returns a run that paints through a VAE."""
    source = load_parts(write_stable_diffusion(tmp_path / "sd"), SD_MODEL)
    torch.manual_seed(0)
    run = tmp_path / "sd_run"
    save_checkpoint(run, Visualizer(SD_MODEL, source), TrainingState(1, {}, {}, ""), keep=2)
    keep_parts(source, run / "checkpoints" / PARTS)
    return run


def test_a_run_with_a_vae_paints(stable_diffusion, tmp_path):
    tokens = tmp_path / "tokens.safetensors"
    save_file({"visual_tokens": TOKENS[:1]}, tokens)
    files = paint_file(stable_diffusion, tokens, tmp_path / "out", QUICK)
    assert [file.stem for file in files] == [
        f"image_00000_guidance{scale}" for scale in ("6", "7.5", "10", "12.5")
    ]
    with Image.open(files[0]) as picture:
        assert picture.size == (16, 16)


def test_the_safety_checker_is_left_out_only_when_asked_to(stable_diffusion, tmp_path):
    write_safety(stable_diffusion / "checkpoints" / PARTS, objects_to_all=True)
    (stable_diffusion / "checkpoints" / PARTS / "manifest.json").unlink()
    tokens = tmp_path / "tokens.safetensors"
    save_file({"visual_tokens": TOKENS[:1]}, tokens)
    settings = PaintSettings(num_steps=1, guidance=(1.0,))
    for use, flagged in ((True, True), (False, False)):
        out = tmp_path / str(use)
        (file,) = paint_file(stable_diffusion, tokens, out, settings, use_safety_checker=use)
        assert json.loads((out / "pictures.json").read_text())[0]["flagged"] == flagged
        with Image.open(file) as picture:
            assert (np.asarray(picture).max() == 0) == flagged


def test_a_missing_vae_is_told(stable_diffusion):
    parts = stable_diffusion / "checkpoints" / PARTS
    (parts / "vae").rename(parts / "elsewhere")
    with pytest.raises(UserError, match=r"vae.*is missing"):
        load_painter(stable_diffusion)
