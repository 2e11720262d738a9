"""The visualizer's commands as a user runs them: killed, run again, and painted with."""

import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from metamorph_jax.metrics.writers import read_metrics
from tests.visualizer_files import RECIPE, write_data

pytestmark = pytest.mark.slow
NUM_STEPS = 60


def command(module, **flags):
    given = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", f"metamorph_jax.visualizer.{module}", *given]


def start(argv):
    return subprocess.Popen(argv, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_killed_training_ends_like_the_unbroken_one(tmp_path, number, code):
    features, images = write_data(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)

    def training(out):
        flags = {"config": tmp_path / "recipe.py", "features": features, "image_root": images}
        more = [
            f"--config.training.total_steps={NUM_STEPS}",
            "--config.checkpoint.interval_steps=7",
        ]
        return start(command("train", **flags, out=out) + more)

    assert training(tmp_path / "unbroken").wait(timeout=120) == 0
    killed = training(tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while len(read_metrics(metrics.parent)) < 15 and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(number)
    assert killed.wait(timeout=60) == code
    assert 15 <= len(read_metrics(metrics.parent)) < NUM_STEPS
    assert training(tmp_path / "run").wait(timeout=120) == 0
    assert read_metrics(metrics.parent) == read_metrics(tmp_path / "unbroken")

    tokens = tmp_path / "visual_tokens.safetensors"
    pictures = []
    for run in ("unbroken", "run"):
        out = tmp_path / f"{run}_pictures"
        argv = command("paint", visualizer=tmp_path / run, tokens=tokens, out=out, steps=3)
        assert start(argv).wait(timeout=120) == 0
        with Image.open(out / "image_00001.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1]
