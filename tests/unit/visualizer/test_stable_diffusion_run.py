"""Whole runs on a tiny Stable Diffusion: encoders on the fly or kept, and pictures that break."""

import dataclasses
import json
import shutil

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.writers import read_metrics
from metamorph_jax.visualizer.checkpoint import complete_steps, load_visualizer
from metamorph_jax.visualizer.loop import train
from metamorph_jax.visualizer.order import batch_indices
from metamorph_jax.visualizer.sources import Sources
from tests import tolerances
from tests.visualizer_files import RUN, SD_RUN, write_data, write_encoder, write_stable_diffusion


@pytest.fixture
def config(tmp_path):
    folder = write_stable_diffusion(tmp_path / "sd")
    training = dataclasses.replace(SD_RUN.training, ema_decay=0.9)
    return dataclasses.replace(SD_RUN, stable_diffusion=str(folder), training=training)


@pytest.fixture
def sources(tmp_path):
    return write_data(tmp_path / "data", size=(24, 18))


def losses(out):
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_kept_latents_change_nothing_but_the_time(
    config, sources, tmp_path, precision, other_precision
):
    training = dataclasses.replace(config.training, mixed_precision=precision)
    config = dataclasses.replace(config, training=training)
    encoder = write_encoder(tmp_path / "export")
    live = Sources(sources.image_root, encoder=encoder)
    kept = dataclasses.replace(live, latents=tmp_path / "latents")
    for name, given in (("live", live), ("kept", kept)):
        assert train(config, given, tmp_path / name) == 0
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 1
    found, expected = losses(tmp_path / "kept"), losses(tmp_path / "live")
    assert len(found) == 6
    # The frozen networks compute in float32 either way.
    limit = tolerances.FLOAT32_TRAINED if precision == "no" else tolerances.BFLOAT16
    assert found == pytest.approx(expected, abs=limit)
    assert load_visualizer(tmp_path / "kept").vae is not None


def test_a_run_needs_the_stable_diffusion_folder_once(config, sources, tmp_path):
    train(config, sources, tmp_path / "unbroken")
    train(config, sources, tmp_path / "run", max_steps=3)
    shutil.rmtree(config.stable_diffusion)
    train(config, sources, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


def break_one(sources, config, step):
    """Breaks a picture of one step's batch; returns (its name, its bytes, the first such step)."""
    seen = [batch_indices(10, config.seed, s, 4).tolist() for s in range(6)]
    index = seen[step][0]
    file = sources.image_root / f"{index}.png"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file, content, next(s for s in range(6) if index in seen[s])


def test_a_broken_picture_is_listed_and_left_out(config, sources, tmp_path):
    file, _, _ = break_one(sources, config, 3)
    lenient = dataclasses.replace(
        config, data=dataclasses.replace(config.data, max_bad_fraction=0.1)
    )
    assert train(lenient, sources, tmp_path / "run") == 0
    (line,) = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["picture"] == file.name
    assert file.name in json.loads(line)["message"]


def test_too_many_broken_pictures_stop_the_run_with_its_work_saved(config, sources, tmp_path):
    train(config, sources, tmp_path / "unbroken")
    file, content, step = break_one(sources, config, 1)
    with pytest.raises(UserError, match=r"1 of 10 pictures cannot be used(.|\n)*" + file.name):
        train(config, sources, tmp_path / "run")
    assert complete_steps(tmp_path / "run")[:1] == ([step] if step else [])
    file.write_bytes(content)
    (tmp_path / "run/quarantine.jsonl").unlink()
    train(config, sources, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features": ()}, "give either --features=FILE or --encoder=FOLDER"),
        ({"encoder": "folder"}, "give either --features=FILE or --encoder=FOLDER"),
        ({"images": "list.txt"}, "--images goes with --encoder"),
    ],
)
def test_contradicting_sources_are_told(config, sources, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        train(config, dataclasses.replace(sources, **changes), tmp_path / "run")


def test_kept_latents_of_pixels_are_told(sources, tmp_path):
    with pytest.raises(UserError, match=r"--latents is for latents\.kind='vae'"):
        train(RUN, dataclasses.replace(sources, latents=tmp_path), tmp_path / "run")
