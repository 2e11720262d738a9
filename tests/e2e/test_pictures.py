"""Training that paints meanwhile: sheets appear, and the run is the one without them."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image

from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from tests.e2e import world as worlds
from tests.visualizer_files import MODEL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = worlds.make_world(tmp_path_factory.mktemp("world"))
    torch.manual_seed(0)
    model = Visualizer(dataclasses.replace(MODEL, token_dim=8))
    save_checkpoint(folder / "visualizer", model, TrainingState(1, {}, {}, ""), keep=2)
    done = worlds.train(folder, workdir="plain")
    assert done.returncode == 0, done.stderr
    return folder


def train(world, visualizer, workdir):
    """Trains with a `pictures` section."""
    section = {
        "interval_steps": 15,
        "records": f"{world}/data.jsonl",
        "image_root": f"{world}/images",
        "visualizer": str(visualizer),
        "num_pictures": 3,
    }
    recipe = world / "recipe.py"
    text = recipe.read_text()
    recipe.write_text(text.replace('"name": "tiny",', f'"name": "tiny", "pictures": {section},'))
    try:
        return worlds.train(world, workdir=workdir)
    finally:
        recipe.write_text(text)


def test_sheets_are_painted_and_change_nothing(world):
    done = train(world, world / "visualizer", "painted")
    log = world / "painted/pictures.log"
    assert done.returncode == 0, done.stderr
    assert "not painted" not in done.stderr, log.read_text()
    assert worlds.history(world, "painted") == worlds.history(world, "plain")
    pictures = world / "painted/pictures"
    sheets = sorted(path.stem for path in pictures.glob("step_*.png"))
    # Due at 15, which the run deletes long before it is painted, and at 30.
    assert sheets[0] == "step_00000015"
    numbers = json.loads((pictures / f"{sheets[0]}.json").read_text())
    assert numbers["num_pictures"] == 3
    assert numbers["mean_picture_cosine"] > 0
    with Image.open(pictures / f"{sheets[0]}.png") as sheet:
        assert sheet.text["step"] == "15"
    assert not (pictures / ".checkpoint").exists()
    events = b"".join(path.read_bytes() for path in (world / "painted/tb").iterdir())
    assert b"pictures/sheet" in events


def test_a_painter_that_fails_does_not_stop_the_run(world):
    broken = shutil.copytree(world / "visualizer", world / "broken")
    (weights,) = broken.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    done = train(world, broken, "unpainted")
    assert done.returncode == 0, done.stderr
    assert "pictures were not painted (exit code 2)" in done.stderr
    assert f"{world}/unpainted/pictures.log" in done.stderr
    assert worlds.history(world, "unpainted") == worlds.history(world, "plain")
