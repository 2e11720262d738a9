"""A recipe with `anyres` images of many shapes: linted, trained, resumed, cached, and asked."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import load_recipe
from metamorph_jax.models.init import abstract_params
from tests.e2e.world import (
    ROOT,
    environment,
    history,
    make_world,
    read_records,
    train,
    write_records,
)

SIZES = [(24, 20), (60, 20), (18, 70), (200, 30), (33, 97), (16, 16)]
STAGES = ("adapter", "vpit")
SHAPE = {"max_images": 8, "max_seq_len": 128, "max_bad_fraction": 0.1}


def make_anyres_world(folder, geometry):
    """Writes a world of images of many shapes, one of them cut short; returns it."""
    make_world(folder)
    random = np.random.default_rng(1)
    for index in range(12):
        width, height = SIZES[index % len(SIZES)]
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    records = [*read_records(folder), {**read_records(folder)[0], "image": "short.png"}]
    whole = (folder / "images" / "1.png").read_bytes()
    (folder / "images" / "short.png").write_bytes(whole[: len(whole) // 2])
    write_records(folder, records)
    recipe = (folder / "recipe.py").read_text()
    shape = "".join(f'"{name}": {value}, ' for name, value in SHAPE.items())
    for old, new in (
        ('"max_seq_len": 96,', f'"image_geometry": "{geometry}", {shape}'),
        ('"max_images": 4,', ""),
        ("max_seq_len=96", "max_seq_len=128"),
        ('"visual_tokens"', '"image_newline": True, "visual_tokens"'),
        ('["connector", "language_model"', '["image_newline", "connector", "language_model"'),
    ):
        assert old in recipe
        recipe = recipe.replace(old, new)
    (folder / "recipe.py").write_text(recipe)
    return folder


def run(module, *arguments):
    command = [sys.executable, "-m", f"metamorph_jax.{module}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


def params_at(folder, workdir, step):
    """Returns the parameters of a checkpoint."""
    config = load_recipe(f"{folder}/recipe.py:{folder}")
    store = CheckpointStore(folder / workdir / "checkpoints")
    params, _ = store.restore_params(abstract_params(config.model), step)
    return jax.device_get(params)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["anyres", "anyres_max_1"])
def test_from_lint_to_answers(tmp_path, geometry):
    world = make_anyres_world(tmp_path / "world", geometry)
    recipe = f"--config={world}/recipe.py:{world}"

    result = run("lint", recipe, f"--out={world}/lint", "--max_problem_fraction=0.1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "image 'short.png' cannot be decoded" in result.stdout
    result = train(world, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "image_newline" in result.stdout and "<image 0.png, " in result.stdout

    result = train(world, workdir="unbroken")
    assert result.returncode == 0, result.stdout + result.stderr
    steps = history(world, "unbroken")
    assert len(steps) == 40 and all(np.isfinite(step["loss"]) for step in steps)
    assert steps[-1]["text_loss"] < steps[20]["text_loss"]
    lines = (world / "unbroken/data/vpit/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["unreadable_media"]
    before, after = (params_at(world, "unbroken", step)["image_newline"] for step in (35, 40))
    assert np.abs(after["embedding"] - before["embedding"]).max() > 0

    train(world, "--max_steps=27", workdir="resumed")
    result = train(world, "--config.stages.vpit.data.num_workers=1", workdir="resumed")
    assert result.returncode == 0 and "resuming at step 27 " in result.stdout, result.stderr
    assert history(world, "resumed") == steps

    result = run("cache_features", recipe, f"--out={world}/cache")
    assert result.returncode == 0, result.stderr
    flags = [f"--config.stages.{name}.data.features={world}/cache" for name in STAGES]
    result = train(world, *flags, workdir="cached")
    assert result.returncode == 0, result.stdout + result.stderr
    assert history(world, "cached") == steps

    wide = f"--image={world}/images/3.png"
    result = run(
        "generate",
        *(f"--checkpoint={world}/unbroken", f"--out={world}/answer", "--prompt=What is it?", wide),
        "--max_new_tokens=8",
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads((world / "answer" / "answer.json").read_text())
    assert 1 <= len(answer["steps"]) <= 8
