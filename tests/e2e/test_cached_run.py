"""A run that reads kept features computes what it computes from pixels, bit for bit."""

import shutil
import subprocess
import sys

import pytest

from tests.e2e.world import ROOT, environment, history, make_world, train

STAGES = ("adapter", "vpit")


def cache(folder, *flags):
    command = [sys.executable, "-m", "metamorph_jax.cache_features"]
    command += [f"--config={folder}/recipe.py:{folder}", f"--out={folder}/cache", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_features_change_nothing_and_another_encoder_is_refused(tmp_path):
    world = make_world(tmp_path)
    result = cache(world)
    assert result.returncode == 0, result.stderr
    assert "12 images, 12 of them new, from 24 records of stage adapter" in result.stdout
    assert "12 images, 0 of them new, from 24 records of stage vpit" in result.stdout
    flags = [f"--config.stages.{name}.data.features={world}/cache" for name in STAGES]

    result = train(world, *flags, "--config.seed=1", workdir="refused")
    assert result.returncode == 2
    assert "the cache was made by another encoder" in result.stderr
    assert "run cache_features again" in result.stderr and "Traceback" not in result.stderr

    assert train(world, workdir="pixels").returncode == 0
    result = train(world, *flags, "--config.stages.vpit.data.num_workers=1", workdir="features")
    assert result.returncode == 0, result.stderr
    assert history(world, "features") == history(world, "pixels")

    # A checkpoint of either run goes on with the other.
    result = train(world, "--max_steps=30", workdir="both")
    assert result.returncode == 0, result.stderr
    result = train(world, *flags, workdir="both")
    assert result.returncode == 0 and "resuming at step 30" in result.stdout, result.stderr
    assert history(world, "both") == history(world, "pixels")

    shutil.rmtree(world / "cache")
    result = train(world, flags[1], workdir="gone")
    assert result.returncode == 2 and not (world / "gone" / "metrics.jsonl").exists()
    assert "no feature cache is here; write it with" in result.stderr
