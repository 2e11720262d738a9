"""Pictures of one model from everywhere it can live, and the errors of asking it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from metamorph_jax import convert
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import asking, paint
from metamorph_jax.visualizer.picture_files import fingerprint
from tests import tolerances
from tests.drawing_run import write_drawing_run, write_visualizer

QUICK = ("--steps=3", "--seeds=4")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns a folder with a run and its visualizer, an export of the run, and an image."""
    root = tmp_path_factory.mktemp("painting")
    run = write_drawing_run(root / "run")
    write_visualizer(run / "visualizer", run)
    assert convert.main(["orbax-to-hf", str(run), f"--out={root / 'hf'}"]) == 0
    Image.new("RGB", (9, 7), (200, 10, 0)).save(root / "red.png")
    return root


def run_paint(out, *flags, **named):
    named = [f"--{name}={value}" for name, value in named.items()]
    assert paint.main([f"--out={out}", *QUICK, *named, *flags]) == 0
    with Image.open(out / "image_00000.png") as picture:
        return np.asarray(picture).astype(int), picture.text


@pytest.mark.slow
@pytest.mark.parametrize("images", [[], ["red.png"]])
def test_run_export_and_token_file_give_the_same_picture(world, tmp_path, images):
    asked = {"prompt": "Draw a cat.", "visualizer": world / "run/visualizer"}
    flags = [f"--image={world / name}" for name in images]
    ours, text = run_paint(tmp_path / "run", *flags, **asked, checkpoint=world / "run")
    assert text["prompt"] == "Draw a cat."
    assert text["seed"] == "4"
    assert text["visualizer_fingerprint"] == fingerprint(world / "run/visualizer")
    theirs, their_text = run_paint(tmp_path / "hf", *flags, **asked, checkpoint=world / "hf")
    # Two libraries' sums differ by rounding, which may tip a pixel to the next of 255 levels.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() <= 0.05
    assert ours.std() > 1
    assert len(their_text["checkpoint_fingerprint"]) == 64
    assert their_text["checkpoint_fingerprint"] != text["checkpoint_fingerprint"]
    found = [load_file(tmp_path / name / "visual_tokens.safetensors") for name in ("run", "hf")]
    torch.testing.assert_close(*found, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    file = {"tokens": tmp_path / "run/visual_tokens.safetensors"}
    again, file_text = run_paint(tmp_path / "file", visualizer=asked["visualizer"], **file)
    np.testing.assert_array_equal(again, ours)
    assert file_text == text


@pytest.mark.slow
def test_the_runs_own_visualizer_is_used(world, tmp_path, capsys):
    checkpoint = world / "run/checkpoints/00000004"
    run_paint(tmp_path, prompt="Draw a cat.", checkpoint=checkpoint)
    assert " cat" in capsys.readouterr().out


def test_run_without_visualizer_is_told(world):
    with pytest.raises(UserError, match=r"hf has no visualizer .*--visualizer=DIR"):
        asking.find_visualizer(None, world / "hf")


def test_hf_folder_that_is_no_metamorph_is_told(world, tmp_path):
    folder = shutil.copytree(world / "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(UserError, match=r"config.json: model_type 'llama' is no MetaMorph"):
        asking.ask(folder, "Draw.", [], tmp_path / "out")


def test_pickled_hf_folder_is_refused(world, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    shutil.copy(world / "hf/config.json", folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        asking.ask(folder, "Draw.", [], tmp_path / "out")


def test_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match=r"could not be asked .*\n.*there is no checkpoint"):
        asking.ask(tmp_path / "nowhere", "Draw.", [], tmp_path / "out")


def test_missing_image_and_surplus_tags_are_told(world, tmp_path):
    with pytest.raises(UserError, match=r"--image=.*no such file"):
        asking.ask(world / "hf", "Draw.", [tmp_path / "no.png"], tmp_path)
    with pytest.raises(UserError, match=r"2 <image> tag\(s\), but 1 image"):
        asking.ask(world / "hf", "<image><image>", [world / "red.png"], tmp_path)


def test_answer_without_a_picture_is_told(tmp_path):
    with pytest.raises(UserError, match=r"run answered without a picture: 'A cat\.'"):
        asking._check_has_picture(0, " A cat. ", tmp_path / "run")
