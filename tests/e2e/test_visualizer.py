"""The visualizer's commands as a user runs them: stopped, killed, run again, and painted with."""

import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from PIL import Image

from metamorph_jax.metrics.writers import read_metrics
from tests.visualizer_files import RECIPE, write_data

pytestmark = pytest.mark.slow
NUM_STEPS = 90


def start(module, **flags):
    argv = [sys.executable, "-m", f"metamorph_jax.visualizer.{module}"]
    argv += [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.Popen(argv, env=os.environ | {"OMP_NUM_THREADS": "1"})


def stop_at(process, out, step, number):
    """Sends a signal once `step` is written; returns (exit code, steps written)."""
    deadline = time.monotonic() + 120
    while len(read_metrics(out)) < step and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=60), len(read_metrics(out))


def test_stopped_and_killed_training_ends_like_the_unbroken_one(tmp_path):
    sources = write_data(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    recipe = {
        "config": tmp_path / "recipe.py",
        "config.training.total_steps": NUM_STEPS,
        "config.checkpoint.interval_steps": 7,
        "features": sources.features[0],
        "image_root": sources.image_root,
    }
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert start("train", **recipe, out=unbroken).wait(timeout=120) == 0
    losses = [line["loss"] for line in read_metrics(unbroken)]
    assert statistics.mean(losses[-20:]) < 0.9 * statistics.mean(losses[:20])

    code, steps = stop_at(start("train", **recipe, out=broken), broken, 10, signal.SIGTERM)
    assert code == 75
    assert 10 <= steps < NUM_STEPS
    killed = start("train", **recipe, out=broken)
    code, steps = stop_at(killed, broken, steps + 10, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert steps < NUM_STEPS
    assert start("train", **recipe, out=broken).wait(timeout=120) == 0
    assert read_metrics(broken) == read_metrics(unbroken)

    tokens = tmp_path / "visual_tokens.safetensors"
    pictures = []
    for run in (unbroken, broken):
        out = run / "pictures"
        painting = start("paint", visualizer=run, tokens=tokens, out=out, steps=3)
        assert painting.wait(timeout=120) == 0
        with Image.open(out / "image_00001.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1]
