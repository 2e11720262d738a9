"""Features are written once by a command of its own; training reads them in place of pixels."""

import subprocess
import sys

import pytest

from tests.e2e.world import ROOT, environment, history, make_world, train

pytestmark = pytest.mark.slow
STAGES = ("adapter", "vpit")


def cache(folder, *flags):
    """Runs the caching command for a world."""
    command = [sys.executable, "-m", "metamorph_jax.cache_features"]
    command += [f"--config={folder}/recipe.py:{folder}", f"--out={folder}/features", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


def use(folder, *flags, workdir):
    """Trains a world on its cache."""
    features = [f"--config.stages.{stage}.data.features={folder}/features" for stage in STAGES]
    return train(folder, *features, *flags, workdir=workdir)


def test_training_on_features_is_training_on_pixels(tmp_path):
    world = make_world(tmp_path / "world")
    assert train(world, workdir="pixels").returncode == 0
    result = use(world, workdir="cached")
    assert result.returncode == 2 and "cache_features" in result.stderr
    result = cache(world)
    assert result.returncode == 0, result.stderr
    result = use(world, workdir="cached")
    assert result.returncode == 0, result.stderr
    assert history(world, "cached") == history(world, "pixels")
    result = use(world, "--config.seed=1", workdir="other")
    assert result.returncode == 2 and "another encoder" in result.stderr
    assert not (world / "other" / "metrics.jsonl").exists()
